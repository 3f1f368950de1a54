//! `forgetscope report`: the page says what was planted, and nothing that the records do not hold.

mod common;

use std::fs;
use std::path::Path;

use common::made_up::{Run, loss, loss_at_end};
use common::program::{failure, forgetscope, stdout, text};

fn page(what: &Path) -> String {
    stdout(&["report", text(what), "--out", "-"])
}

/// A part of the page.
fn part<'a>(page: &'a str, id: &str) -> &'a str {
    let found = page.split("<section").find(|section| section.contains(&format!(" id=\"{id}\"")));
    found.unwrap_or_else(|| panic!("no part {id}")).split("</section>").next().unwrap()
}

/// Without tags, with single spaces: what a reader reads.
fn read(page: &str) -> String {
    let begin = page.find("<body").map_or(0, |at| at);
    read_markup(&page[begin..page.find("<script").unwrap_or(page.len())])
}

fn read_markup(body: &str) -> String {
    let mut text = String::new();
    for piece in body.split('<') {
        let (tag, words) = piece.split_once('>').unwrap_or(("", piece));
        let is_inline = ["sub", "/sub", "code", "/code", "b", "/b"].contains(&tag);
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

/// The text and the markup of a part of the whole made-up run's page.
fn part_of_the_story(id: &str) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let page = page(&run.path);
    check_well_formed(&page);
    (read(part(&page, id)), part(&page, id).into())
}

#[test]
fn the_headline_has_what_probes_and_landscapes_say() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let text = read(&page(&run.path));
    assert!(
        text.contains(
            "Of 4 layers, layer 2 represents the text of legal most differently (debiased CKA 0.55 ± 0.01); 2 of 16 heads \
             changed more than further training on legal would change them, by an extrapolated null, 1 severely (layer 2 head 1: \
             with its old weights the loss is 0.08 ± 0.01 lower)."
        ),
        "{text}"
    );
    let flatter =
        "The loss landscape of legal is flatter than at its end: its relative trace is 0.42 ± 0.05 times what it was.";
    assert!(text.contains(flatter), "{text}");
}

#[test]
fn representations_are_compared_with_further_training() {
    let (text, markup) = part_of_the_story("representation");
    assert!(text.contains("Of 4 layers, layer 2 represents the text of legal most differently"), "{text}");
    assert!(text.contains("text of legal, against step 199"), "{text}");
    assert!(text.contains("2 0.55 ± 0.01 0.97 0.225 12 → 10 0.004 ± 0.01"), "the row of layer 2: {text}");
    assert!(markup.contains("<b>−0.12 ± 0.01</b>") && markup.matches("<b>").count() == 2, "layer 1, for both tasks");
    assert!(
        text.contains("Grey: what further training")
            && text.contains("Biased CKA, which published figures often are, is now")
    );
    assert!(markup.contains("class=\"band\""));
}

#[test]
fn angles_are_judged_by_their_null_and_the_gap() {
    let (text, markup) = part_of_the_story("angles");
    // 60° times what has changed: 6, 10.8, 27 and 12 degrees against 8, the last with a gap that is too small.
    assert!(
        text.contains("In 2 of 4 layers the leading subspace of legal has turned more than halves of its text differ"),
        "{text}"
    );
    assert!(text.contains("Hollow also where that gap is below 0.05 of the axis' variance (2 of 8)"), "{text}");
    assert_eq!((markup.matches("interval negative").count(), markup.matches("interval unsure").count()), (4, 4));
    assert!(markup.contains("layer 2: mean angle 27.0°, largest 40.5°; null 5.0° on average, 8.0° at 95 %"));
}

#[test]
fn heads_have_their_class_their_null_and_their_effect() {
    let (text, markup) = part_of_the_story("severity");
    assert!(text.contains("would change them, by an extrapolated null, 1 severely"), "{text}");
    assert!(text.contains(
        "text of legal: of 16 heads, 2 changed, 1 of them severe. At a false discovery rate of 5 %, at most 0.1"
    ));
    assert!(text.contains("The null is extrapolated: measured over up to 40 updates, these are after 200"), "{text}");
    assert!(text.contains("text of medical: of 16 heads, 0 changed; 16 undetermined"), "{text}");
    assert!(text.contains("Severity 1: changed if q ≤ 0.05"), "the predicate of the ring");
    // One in each map, and one in the legend.
    assert_eq!((markup.matches("cell severe").count(), markup.matches("cell changed").count()), (2, 2));
    assert_eq!(markup.matches("cell noise").count(), 17, "all heads of medical, and the legend");
    assert!(markup.contains("layer 2 head 1: change 0.06 of the residual stream, 6 times the null"));
    assert!(text.contains("layer 2 head 1 0.2 0.2 3 → 2.5 0.2 → 0.1"), "attention: {text}");
    assert!(text.contains("Upper against lower layers") && markup.contains("difference 0.03 (0.01 to 0.05, 95 %)"));
}

#[test]
fn landscapes_are_then_and_now() {
    let (text, markup) = part_of_the_story("landscape");
    assert!(text.contains("loss of legal: base at step 199, now at step 599"), "{text}");
    assert!(text.contains("relative trace 2 ± 0.1 0.84 ± 0.1 0.42 ± 0.05"), "{text}");
    assert!(text.contains("largest eigenvalue 40 16.8 0.42") && text.contains("along the drift – 0.3"), "{text}");
    // Seven nodes: of legal and of medical twice, of code once.
    assert_eq!(markup.matches("class=\"stem\"").count(), 35);
    assert!(text.contains("way from the end of the task (0) to now (1)"));
    assert!(text.contains("secant along the drift 0.25 ± 0.06 secant, distance; batches 3; 16 at step 599"), "{text}");
    assert!(text.contains("Fisher, largest 50, 20, 12, 9, 7") && text.contains("h.0.v.weight 9 80 ± 4"), "{text}");
}

#[test]
fn routers_are_shown_where_there_are_any() {
    let (text, _) = part_of_the_story("router");
    assert!(text.contains("Tokens of legal keep 0.6 of their experts in layer 3"), "{text}");
    assert!(text.contains("unrelated choices would keep 0.14") && text.contains("0.3 (0.01)"), "{text}");
}

#[test]
fn three_pairs_correlate_with_nothing() {
    let (text, _) = part_of_the_story("pairs");
    assert!(text.contains("Most was forgotten of legal while medical was trained"), "{text}");
    assert!(text.contains("n = 3 pairs of one run: too few to say what goes with what."), "{text}");
    // (0.2 − 0.05)/(0.9 − 0.05)
    assert!(text.contains("legal, medical 0.176"), "{text}");
}

#[test]
fn stages_of_the_loss_curve_are_marked() {
    let (text, markup) = part_of_the_story("curves");
    assert!(text.contains("The strip below the loss is the stage"), "{text}");
    assert!(markup.contains("legal, descent at step 59") && markup.contains("legal, plateau at step 199"));
    // Evaluations after the third of each of three tasks.
    assert_eq!(markup.matches("class=\"piece\"").count(), 24);
}

#[test]
fn noise_has_no_sign() {
    let directory = tempfile::tempdir().unwrap();
    let run = Run::in_directory(directory.path());
    run.write().unwrap();
    let page = page(&run.path);
    // Of 2 × 64 cells, four were planted.
    let hatched = part(&page, "heads").matches("class=\"cell noise\"").count();
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
    for call in [
        "fgs_record_loss",
        "fgs_bind",
        "fgs_snapshot",
        "fgs_reference_add",
        "reference_budget",
        "fgs_probe_begin",
        "fgs_probe_head_output",
        "fgs_probe_attention",
        "fgs_head_effect",
        "fgs_curvature_begin",
    ] {
        assert!(text.contains(call), "{call}");
    }
    assert!(!page.contains("class=\"chart\""), "no empty charts");
    assert!(!page.contains("id=\"router\"") && !page.contains("id=\"forecast\""), "nobody asked for these");
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
