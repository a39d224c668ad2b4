//! `tests/golden/v1.floe`, made once by `cargo run -p floe-image --example make-golden -- FILE`, reads as it always did.

use crate::{
    forge::{self, PAGES, Part},
    sample,
    shared::{compare, open, written},
};

pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/v1.floe");

const RULE: &str = "tests/golden/v1.floe no longer reads as it was written. A shape that has shipped never changes, nor does \
                    its golden: a new shape is a new version beside the old one, with a golden of its own";

fn golden() -> Vec<u8> {
    std::fs::read(PATH).expect("read the golden")
}

#[test]
fn an_image_of_version_1_reads_as_it_always_did() {
    let image = open(&golden()).unwrap_or_else(|error| panic!("{RULE}: {}", crate::shared::chain(&error)));
    compare(&image, &sample::whole(), RULE);
    image.verify(|_| {}).expect("verify the golden");
}

#[test]
fn records_are_written_as_version_1_always_was() {
    let records = |image: &[u8]| -> Vec<Part> {
        let parts = forge::take_apart(image).into_iter();
        parts.filter(|part| part.kind != PAGES).collect()
    };
    let (now, then) = (records(&written(&sample::whole())), records(&golden()));
    assert_eq!(now.len(), then.len(), "{RULE}");
    for (now, then) in now.iter().zip(&then) {
        assert!(now == then, "{RULE}: kind {}", then.kind);
    }
}
