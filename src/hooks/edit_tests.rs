use proptest::prelude::*;

use super::*;
use crate::hooks::dims::tests::MISTRAL;
use crate::hooks::pattern::tests::any_pattern;
use crate::hooks::selection::tests::any_selection;

fn resolve(text: &str) -> Result<Vec<Edit>> {
    text.parse::<EditSpec>()?.resolve(&MISTRAL)
}

fn error(text: &str) -> String {
    resolve(text).unwrap_err().to_string()
}

#[test]
fn an_edit_is_a_kind_and_key_value_words() {
    let text = "add at=blocks.15.hook_resid_post v=dir.safetensors#direction c=-8.25 select=all";
    let edit: EditSpec = text.parse().unwrap();
    assert_eq!(edit.to_string(), text);
    assert_eq!(
        edit.change,
        ChangeSpec::Add {
            v: Source {
                path: "dir.safetensors".into(),
                key: Some("direction".into())
            },
            c: -8.25,
            unit: false
        }
    );
    assert_eq!(edit.selection, Selection::All);
}

#[test]
fn every_kind_reads_and_writes_the_same() {
    for text in [
        "add at=hook_embed v=d.safetensors c=1 unit=true select=last",
        "scale at=blocks.*.hook_mlp_out c=0.5 select=no-bos",
        "zero at=blocks.16.attn.hook_z[8,24] select=all",
        "mean at=blocks.3.hook_attn_out v=runs/store#blocks.3.hook_attn_out select=all",
        "replace at=blocks.3.hook_attn_out from=runs/store 'select=role:user & last'",
        "project-out at=ln_final.hook_out v=d.safetensors#d select=all",
        "clamp at=logits v=d.safetensors#d lo=-1 hi=2.5 select=step:0..3",
        "clamp at=logits v=d.safetensors#d hi=2.5 select=all",
        "zero at=blocks.3.attn.hook_pattern[1] select=all",
    ] {
        assert_eq!(text.parse::<EditSpec>().unwrap().to_string(), text);
    }
}

#[test]
fn a_pattern_becomes_an_edit_per_point_and_heads_are_part_of_the_place() {
    let edits = resolve("zero at='blocks.{30,-1}.attn.hook_k[-1]'").unwrap();
    let places: Vec<String> = edits.iter().map(Edit::place).collect();
    assert_eq!(
        places,
        ["blocks.30.attn.hook_k[7]", "blocks.31.attn.hook_k[7]"]
    );
    assert_eq!(edits[0].width(&MISTRAL), 128);
}

#[test]
fn what_is_wrong_with_an_edit_is_said_with_the_remedy() {
    for (text, says) in [
        ("", "write a kind"),
        ("ad at=hook_embed", "unknown edit `ad`; nearest: `add`"),
        ("zero", "`at=` is missing"),
        ("add at=hook_embed c=1", "`v=` is missing"),
        ("add at=hook_embed v=f#k", "`c=` is missing"),
        (
            "add at=hook_embed v=f#k c=one",
            "`c` is no finite f32 number",
        ),
        (
            "add at=hook_embed v=f#k c=inf",
            "`c` is no finite f32 number",
        ),
        (
            "add at=hook_embed v=f#k c=1 unit=yes",
            "`unit` is true or false",
        ),
        (
            "scale at=hook_embed c=1 v=f#k",
            "scale has no `v`; it has at, c, select",
        ),
        ("scale at=hook_embed c=1 c=2", "`c` is given twice"),
        ("zero at=hook_embed now", "`now` is no key=value word"),
        ("zero at='hook_embed", "does not close"),
        ("mean at=hook_embed v=#k", "FILE.safetensors#TENSOR"),
        ("replace at=hook_embed from=s#", "STORE#TAP"),
        ("clamp at=hook_embed v=f#k", "`lo=`, `hi=` or both"),
        ("clamp at=hook_embed v=f#k lo=2 hi=1", "`lo` is above `hi`"),
        ("zero at=hook_embd", "unknown hook point"),
        ("zero at=hook_embed select=lst", "unknown selection"),
        ("zero at=blocks.32.hook_mlp_out", "no layer 32"),
        ("zero at=blocks.3.attn.hook_v[8]", "no key/value head 8"),
        (
            "zero at=blocks.3.attn.hook_attn_scores",
            "edit blocks.L.attn.hook_pattern",
        ),
        (
            "zero at=blocks.3.attn.hook_result",
            "edit blocks.L.attn.hook_z",
        ),
        (
            "zero at=blocks.3.ln1.hook_scale",
            "edit the norm's hook_out",
        ),
        (
            "mean at=blocks.3.attn.hook_pattern v=f#k",
            "no vector fits it",
        ),
    ] {
        let message = error(text);
        assert!(message.contains(says), "{text}: {message}");
        assert!(!message.contains('\n'));
    }
}

fn any_change() -> impl Strategy<Value = ChangeSpec> {
    let source = || {
        ("[a-z '\"./]{1,8}", prop::option::of("[a-z.0-9 ]{1,6}")).prop_map(|(path, key)| Source {
            path: path.into(),
            key,
        })
    };
    let number = || prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::NEGATIVE;
    prop_oneof![
        (source(), number(), any::<bool>()).prop_map(|(v, c, unit)| ChangeSpec::Add { v, c, unit }),
        number().prop_map(|c| ChangeSpec::Scale { c }),
        Just(ChangeSpec::Zero),
        source().prop_map(|v| ChangeSpec::Mean { v }),
        source().prop_map(|from| ChangeSpec::Replace { from }),
        source().prop_map(|v| ChangeSpec::ProjectOut { v }),
        (source(), number(), number()).prop_map(|(v, a, b)| ChangeSpec::Clamp {
            v,
            lo: a.min(b),
            hi: a.max(b)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn an_edit_reads_back_what_it_writes(at in any_pattern(), selection in any_selection(), change in any_change()) {
        let edit = EditSpec { at, selection, change };
        prop_assert_eq!(edit.to_string().parse::<EditSpec>(), Ok(edit));
    }

    #[test]
    fn no_string_makes_the_edit_parser_panic(text in any::<String>()) {
        let _ = resolve(&text);
    }

    #[test]
    fn no_near_miss_makes_the_edit_parser_panic(text in r"(add|scale|zero|mean|replace|clamp) (at=(logits|hook_embed) )?((v|c|lo|hi|select|from)=[-a-z0-9.#'&]{0,6} ?){0,4}") {
        let _ = resolve(&text);
    }
}
