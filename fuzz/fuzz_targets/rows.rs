#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = saferl_fuzz::rows(bytes);
});
