//! `forgetscope report`: the page says what was planted, and nothing that the records do not hold.

mod common;

use std::fs;
use std::path::Path;

use common::made_up::{Run, loss, loss_at_end};
use common::program::{failure, forgetscope, stdout, text};

fn page(what: &Path) -> String {
    stdout(&["report", text(what), "--out", "-"])
}

/// Without tags, with single spaces: what a reader reads.
fn read(page: &str) -> String {
    let mut text = String::new();
    let body = &page[page.find("<body").unwrap()..page.find("<script").unwrap()];
    for piece in body.split('<') {
        let (tag, words) = piece.split_once('>').unwrap_or(("", piece));
        let is_inline = ["sub", "/sub", "code", "/code"].contains(&tag);
        text += if is_inline { "" } else { " " };
        text += words;
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every element is closed where it should be.
fn check_well_formed(page: &str) {
    const VOID: [&str; 1] = ["meta"];
    let style = (page.find("<style>").unwrap() + 7, page.find("</style>").unwrap());
    let script = (page.find("<script>").unwrap() + 8, page.find("</script>").unwrap());
    let markup = [&page[..style.0], &page[style.1..script.0], &page[script.1..]].concat();
    let mut open: Vec<&str> = Vec::new();
    for piece in markup.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag ends");
        assert!(!text.contains('>'), "a stray > after <{tag}>");
        assert!(tag.matches('"').count() % 2 == 0, "quotes in <{tag}>");
        assert!(!tag.contains("NaN") && !tag.contains("inf"), "no coordinate is a hole: <{tag}>");
        let name = tag.split_whitespace().next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}>");
        } else if !VOID.contains(&name) && !name.starts_with('!') {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
    let ids: Vec<&str> = markup.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(ids.iter().enumerate().all(|(index, id)| !ids[..index].contains(id)), "{ids:?}");
    for outside in ["http://", "https://", " src=", " href=", "@import", "url(\""] {
        assert!(!page.contains(outside), "{outside}: the page is to be self-contained");
    }
}

#[test]
fn the_planted_heads_are_called_out() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let page = page(&run.path);
    check_well_formed(&page);
    let text = read(&page);
    let forgotten = loss(0, 599) - loss_at_end(0);
    assert!(
        text.contains(&format!(
            "legal was forgotten most: its loss is {:.2}, which is {forgotten:.2} (35 %) higher",
            loss(0, 599)
        )),
        "{text}"
    );
    assert!(text.contains("2 of 64 heads opposed legal"), "{text}");
    assert!(text.contains("layer 2 q.1 (mean cosine −0.4") && text.contains("layer 1 v.3 (mean cosine −0."));
    assert!(text.contains("against medical: of 64 cells, 1 negative and 0 positive"));
    assert!(text.contains("Of 4 layers, 2 work against legal, none in its favour, 2 cannot be told from 0"));
    assert!(text.contains("layer 2 has moved furthest since legal ended"));
    assert!(text.contains("cosine of the mean gradients is −0.19 ± 0.04"));
    assert!(text.contains("sampled steps with NaN or infinite values 2"), "counters");
}

#[test]
fn noise_has_no_sign() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let page = page(&run.path);
    // Of 2 × 64 cells, four were planted.
    let hatched = page.matches("class=\"cell noise\"").count();
    assert!((120..=125).contains(&hatched), "{hatched} with the one in the legend");
    assert!(page.matches("undetermined-name").count() >= 2, "layer 0 against both tasks");
}

#[test]
fn a_recording_gives_the_same_page_as_the_ring() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let out = directory.path().join("recording");
    assert!(forgetscope(&["record", text(&run.path), "--out", text(&out), "--part-rows", "500"]).status.success());
    let (of_ring, of_recording) = (page(&run.path), page(&out));
    let of_ring = of_ring.replace(text(&run.path), text(&out)).replace("the ring in shared memory", "a recording");
    assert_eq!(of_ring, of_recording);
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run { bare: true, ..Run::in_directory(directory.path()) };
    run.write().unwrap();
    let page = page(&run.path);
    check_well_formed(&page);
    let text = read(&page);
    assert!(text.contains("Whether anything is being forgotten is not known"));
    for call in ["fgs_record_loss", "fgs_bind", "fgs_snapshot", "fgs_reference_add", "reference_budget"] {
        assert!(text.contains(call), "{call}");
    }
    assert!(!page.contains("class=\"chart\""), "no empty charts");
}

#[test]
fn what_the_ring_no_longer_holds_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run { slots: 1024, world: 4, ..Run::in_directory(directory.path()) };
    let published = run.write().unwrap().len();
    let page = page(&run.path);
    check_well_formed(&page);
    let text = read(&page);
    let gone = published - 1024;
    let gone = format!("{},{:03} earlier records are gone", gone / 1000, gone % 1000);
    assert!(text.contains(&gone) && text.contains("rank 0 of 4"), "{text}");
}

#[test]
fn a_run_that_goes_on_or_died_is_said_to() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    let mut story = run.create().unwrap();
    story.tell();
    let text = read(&page(&run.path));
    assert!(text.contains("legal is being forgotten most") && text.contains("The run goes on"));
    drop(story);
    assert!(read(&page(&run.path)).contains("The run died without closing its ring"));
}

#[test]
fn names_are_text_and_not_markup() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run { name: "<script>alert(1)</script>".into(), ..Run::in_directory(directory.path()) };
    run.write().unwrap();
    let page = page(&run.path);
    check_well_formed(&page);
    assert_eq!(page.matches("<script>").count(), 1);
}

#[test]
fn mistakes_are_said() {
    let directory = tempfile::tempdir().unwrap();
    let said = failure(&["report", text(directory.path())]);
    assert!(said.contains("holds no recording; make one with"), "{said}");
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let said = failure(&["report", text(&run.path), "--out", "/nonexistent/report.html"]);
    assert!(said.contains("cannot write /nonexistent/report.html"), "{said}");
    let damaged = directory.path().join("recording");
    fs::create_dir_all(damaged.join("catalog")).unwrap();
    fs::write(damaged.join("catalog/rank=0.json"), "{").unwrap();
    assert!(failure(&["report", text(&damaged)]).contains("is not the catalog of a recording"));
}
