#![no_main]

use sluice_tests::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = fuzz::target("manifest").expect("the target of this name");
    (target.run)(data);
});
