//! Wrong use of every function is refused with a status and a sentence, and harms nothing.

mod abi_support;

use abi_support::run;

#[test]
fn wrong_use() {
    run("wrong_use");
}
