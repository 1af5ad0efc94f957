//! Whether host code is as it was when `cargo xtask golden --bless` wrote it down.

use tessera_golden::files;

#[test]
fn host_code_is_as_written_down() {
    match files::check() {
        Ok(skipped) => skipped.iter().for_each(|why| println!("skipped: {why}")),
        Err(differences) => panic!("{differences}"),
    }
}
