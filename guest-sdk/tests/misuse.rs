//! Misuse that must not compile: above all, nothing of an event outlives its call. The messages are part of what is
//! checked, since they are what a filter's author reads; after a change of compiler `TRYBUILD=overwrite` writes them
//! anew, for review.

#[test]
fn misuse_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/misuse/*.rs");
}
