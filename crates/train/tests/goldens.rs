//! The losses against TRL's and verl's own code: values and gradients in `goldens/loss/loss.json`.

use candle_core::{Device, Tensor, Var};
use serde::Deserialize;
use train::gspo::{Completions, Loss, Objective};

#[derive(Deserialize)]
struct Goldens {
    lengths: Vec<usize>,
    advantages: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    source: String,
    loss: Loss,
    clip_low: f64,
    clip_high: f64,
    kl: f64,
    old: Vec<f64>,
    new: Vec<f64>,
    reference: Vec<f64>,
    value: f64,
    gradient: Vec<f64>,
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

#[test]
fn losses_and_gradients_equal_those_of_trl_and_verl() {
    let goldens: Goldens = serde_json::from_str(include_str!("../../../goldens/loss/loss.json")).unwrap();
    let count = |source: &str| goldens.cases.iter().filter(|case| case.source == source).count();
    assert!(count("trl") >= 18 && count("verl") >= 6);
    for case in &goldens.cases {
        let Case {
            loss,
            clip_low,
            clip_high,
            kl,
            ..
        } = *case;
        let (old_t, reference_t) = (tensor(&case.old), tensor(&case.reference));
        let new_t = Var::from_tensor(&tensor(&case.new)).unwrap();
        let completions = Completions {
            lengths: &goldens.lengths,
            advantages: &goldens.advantages,
            old_t: &old_t,
            reference_t: (kl > 0.0).then_some(&reference_t),
            minibatch: goldens.lengths.len(),
        };
        let (value, _) = Objective {
            loss,
            clip_low,
            clip_high,
            kl,
        }
        .loss(&new_t, &completions)
        .unwrap();
        let store = value.backward().unwrap();
        let gradient = store
            .get(&new_t)
            .map_or(vec![0.0; case.new.len()], |gradient| gradient.to_vec1().unwrap());
        let name = format!("{} {loss:?} {clip_low} {kl}", case.source);
        let value: f64 = value.to_scalar().unwrap();
        assert!(
            (value - case.value).abs() < 1e-6,
            "{name}: expected {}, found {value}",
            case.value
        );
        for (expected, found) in case.gradient.iter().zip(&gradient) {
            assert!(
                (expected - found).abs() < 1e-6,
                "{name}: expected {expected}, found {found}"
            );
        }
    }
}
