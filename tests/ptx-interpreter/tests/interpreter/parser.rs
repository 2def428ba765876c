use proptest::prelude::*;
use ptx_interpreter::{Device, Launch, Module, Schedule};

use crate::snippet::HEADER;

const SAMPLES: [&str; 2] = [
    include_str!("../fixtures/softmax.ptx"),
    include_str!("../fixtures/tile.ptx"),
];

#[test]
fn errors_name_the_text_and_the_line() {
    let text =
        format!("{HEADER}.visible .entry k()\n{{\n  .reg .b32 %r<2>;\n  add.u32 %r1, %r5, 1;\n}}");
    let error = Module::parse(&text, "broken.ptx").unwrap_err();
    assert_eq!(error.line, 7);
    assert!(
        error
            .to_string()
            .starts_with("broken.ptx:7: `add.u32`: `%r5` is not declared"),
        "{error}"
    );
    for bad in [
        "}",
        ".entry",
        ".visible .entry k() { bra NOWHERE; }",
        ".entry k() { add.u32 }",
        "/*",
        ".global .u32 x = {1, 2};",
    ] {
        assert!(Module::parse(bad, "bad").is_err(), "{bad}");
    }
}

#[test]
fn registers_of_an_inner_scope_hide_the_outer_ones() {
    let text = format!(
        "{HEADER}.visible .entry k() {{ .reg .b32 %a; mov.u32 %a, 1; {{ .reg .b64 %a; mov.u64 %a, 2; L: }} {{ L: }} add.u32 %a, %a, 1; ret; }}"
    );
    assert!(Module::parse(&text, "scopes").is_ok());
}

/// Whatever parses is also run, with arguments of zeros: it may find something, but not panic.
fn parse_and_run(text: &str) {
    let Ok(module) = Module::parse(text, "mutated") else {
        return;
    };
    let mut device = Device::new();
    device.set_step_limit(2_000);
    for kernel in module.kernels() {
        let args = vec![0; kernel.param_bytes];
        let launch = Launch {
            grid: [2, 1, 1],
            block: [64, 1, 1],
            dynamic_shared: 4096,
            schedule: Schedule::Forward,
        };
        let _ = device.launch(&module, &kernel.name, &launch, &args);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn bytes_changed_anywhere_never_panic(sample in 0..SAMPLES.len(), edits in prop::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..8)) {
        let mut bytes = SAMPLES[sample].as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        parse_and_run(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn words_swapped_or_dropped_never_panic(sample in 0..SAMPLES.len(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<bool>()), 1..6)) {
        let mut words: Vec<&str> = SAMPLES[sample].split_inclusive([' ', '\n', ',', '\t', '.']).collect();
        for (a, b, drop) in edits {
            let (a, b) = (a.index(words.len()), b.index(words.len()));
            if drop { words.remove(a); } else { words.swap(a, b); }
        }
        parse_and_run(&words.concat());
    }

    #[test]
    fn any_text_never_panics(text in "[ -~\\n\\t]{0,200}") {
        parse_and_run(&text);
        parse_and_run(&format!("{HEADER}.visible .entry k() {{ {text} }}"));
    }
}
