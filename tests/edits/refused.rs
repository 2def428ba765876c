//! What cannot be edited, and what is said of it.

use super::*;

#[test]
fn what_cannot_be_edited_so_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let v = bench.tensor("v.safetensors", &[64], &[1.0; 64]);
    let wide = bench.tensor("wide.safetensors", &[65], &[1.0; 65]);
    let zero = bench.tensor("zero.safetensors", &[64], &[0.0; 64]);
    let nan = bench.tensor("nan.safetensors", &[64], &[f32::NAN; 64]);
    let store = bench
        .store(Bench::job(
            &data,
            &[
                "blocks.1.hook_resid_post@last",
                "blocks.1.attn.hook_z[1]",
                "blocks.2.mlp.hook_post|norm",
            ],
            &[],
        ))
        .unwrap();
    let store = store.display();
    let square = bench.tensor("square.safetensors", &[8, 8], &[1.0; 64]);
    let long = bench.tensor("long.safetensors", &[1, 128], &[1.0; 128]);
    // Numbers beyond f32; and a slice of a dataset in which no sample is long enough.
    let overflow = "scale at=blocks.0.hook_resid_post c=3e38";
    let lost = bench
        .store(Bench::job(
            &data,
            &["blocks.0.hook_resid_post"],
            &[overflow],
        ))
        .unwrap();
    let lost = lost.display();
    let empty = bench
        .store(Job {
            shard: Some((1, 2)),
            ..Bench::job(
                &bench.data(0, &[9, 2]),
                &["blocks.1.hook_resid_post@3..4"],
                &[],
            )
        })
        .unwrap();
    let empty = empty.display();
    let data = bench.data(0, &LENGTHS);
    let foreign = {
        let path = bench.path("foreign");
        let model = common::fixtures().join("models/linear-rope");
        let job = Job::new(
            model.display().to_string(),
            vec![data.clone()],
            vec!["blocks.0.hook_resid_post".into()],
        );
        extract(&Prepared::open(job).unwrap(), &path, &mut |_| ()).unwrap();
        path
    };
    let foreign = foreign.display();
    for (edit, says) in [
        (
            format!("add at=blocks.0.hook_resid_post v={wide} c=1"),
            "has shape [65]; blocks.0.hook_resid_post needs [64]",
        ),
        (
            format!("add at=blocks.0.attn.hook_z v={wide} c=1"),
            "needs [64] or [4, 16], or [16] for each head alike",
        ),
        (
            format!("add at=blocks.0.hook_resid_post v={square} c=1"),
            "has shape [8, 8]; blocks.0.hook_resid_post needs [64]",
        ),
        (
            format!("replace at=blocks.0.hook_resid_post from={long}"),
            "has shape [1, 128]; blocks.0.hook_resid_post needs rows of shape [64]",
        ),
        (
            format!("mean at=blocks.1.hook_resid_post v={empty}"),
            "it has no rows, and so no mean",
        ),
        (
            format!("mean at=blocks.0.hook_resid_post v={lost}"),
            "the mean of its rows is ",
        ),
        (
            format!("replace at=blocks.0.hook_resid_post from={lost}"),
            "its row of sample 0 at position 0 holds ",
        ),
        (
            format!("add at=blocks.0.attn.hook_z[4] v={v} c=1"),
            "no query head 4",
        ),
        (
            format!("add at=blocks.3.hook_resid_post v={v} c=1"),
            "no layer 3",
        ),
        (
            "add at=hook_embed v=nowhere.safetensors#v c=1".into(),
            "nowhere.safetensors is not there",
        ),
        (
            format!("add at=hook_embed v={} c=1", v.replace("#v", "#w")),
            "no tensor 'w'; it has v",
        ),
        (
            format!("add at=hook_embed v={data} c=1"),
            "not a safetensors file",
        ),
        (
            format!("project-out at=hook_embed v={zero}"),
            "is 0 and has no direction",
        ),
        (
            format!("add at=hook_embed v={nan} c=1"),
            "'v' holds NaN at component 0",
        ),
        (
            format!("replace at=blocks.0.hook_resid_post from={foreign}"),
            "comes from another model",
        ),
        (
            format!(
                "mean at=blocks.0.hook_resid_post v={foreign}/blocks.0.hook_resid_post/00000.safetensors#activations"
            ),
            "comes from another model",
        ),
        (
            format!("replace at=blocks.0.hook_resid_post from={store}"),
            "blocks.0.hook_resid_post",
        ),
        (
            format!("replace at=blocks.1.hook_resid_post from={store}"),
            "has no row of sample 0",
        ),
        (
            format!("replace at=blocks.1.attn.hook_z[0] from={store}"),
            "hold heads [1], and not head 0",
        ),
        (
            format!("replace at=blocks.2.mlp.hook_post from={store}"),
            "its rows are reduced (|norm)",
        ),
        (
            format!("replace at=blocks.1.attn.hook_pattern from={store}#blocks.1.attn.hook_z"),
            "no common shape",
        ),
        (
            format!("replace at=hook_embed from={store}#blocks.1.attn.hook_z"),
            "its rows have 16 numbers; hook_embed needs 64",
        ),
        (
            format!("replace at=blocks.1.attn.hook_pattern from={v}"),
            "come from a store",
        ),
        ("zero at=hook_embed select=generated".into(), "generat"),
        (
            "zero at=blocks.2.hook_resid_post select=7..8".into(),
            "touched no row",
        ),
        ("zero at=logits select=first".into(), "touched no row"),
        ("zero at=blocks.0.ln1.hook_scale".into(), "cannot be edited"),
    ] {
        let data = match says == "touched no row" {
            true => bench.data(0, &[3, 2]),
            false => data.clone(),
        };
        let message = bench.refused(Bench::job(&data, &["logits@last"], &[&edit]));
        assert!(message.contains(says), "{edit}: {message}");
    }
    let message = bench.refused(Bench::job(
        &data,
        &["blocks.1.hook_resid_pre"],
        &["zero at=blocks.1.hook_resid_mid"],
    ));
    assert!(
        message
            .contains("changes nothing that is tapped: the last tap is at blocks.1.hook_resid_pre"),
        "{message}"
    );
}

#[test]
fn recomputing_with_other_numbers_is_refused() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let file = bench.tensor("v.safetensors", &[64], &[0.5; 64]);
    let edit = format!("add at=blocks.0.hook_resid_post v={file} c=1");
    let store = bench
        .store(Bench::job(&data, &["blocks.1.hook_resid_post"], &[&edit]))
        .unwrap();
    assert!(
        recompute(&store, 4, 0, None, None)
            .unwrap()
            .differences
            .is_empty()
    );
    bench.tensor("v.safetensors", &[64], &[0.25; 64]);
    let message = recompute(&store, 4, 0, None, None).unwrap_err().to_string();
    assert!(
        message.contains("reads other numbers than it did"),
        "{message}"
    );
}
