//! The articles on the ABI mention what there is: every status, every fault, and no function that does not exist.

mod abi_support;

use abi_support::root;
use forgetscope::scope::schema::Fault;

const ARTICLES: [&str; 4] = ["errors", "ownership", "threads-and-streams", "stability"];

fn article(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name).with_extension("md")).expect("an article in docs")
}

fn header() -> String {
    std::fs::read_to_string(root().join("include/forgetscope.h")).expect("the header")
}

/// Words of a text that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(move |word| word.starts_with(prefix))
}

#[test]
fn every_status_is_explained() {
    let (header, errors) = (header(), article("errors"));
    let body = header.split("enum fgs_status").nth(1).and_then(|rest| rest.split("};").next()).expect("fgs_status");
    let constants = body.lines().filter(|line| line.contains(" = ")).flat_map(|line| words(line, "FGS_"));
    let missing: Vec<_> = constants.filter(|name| !errors.contains(&format!("| `{name}` |"))).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn every_fault_is_explained() {
    let errors = article("errors");
    for (_, name) in Fault::ALL {
        assert!(errors.contains(&format!("| {name} |")), "docs/errors.md: {name}");
    }
}

#[test]
fn functions_exist() {
    let header = header();
    for name in ARTICLES {
        for function in words(&article(name), "fgs_").filter(|word| *word != "fgs_") {
            assert!(header.contains(function), "docs/{name}.md: {function}");
        }
    }
}
