//! Gradients into weights: AdamW's states, gradient clipping, and the learning rate's schedule.

use std::collections::HashMap;

use candle_core::{Tensor, Var};
use kernels::{AdamW, gradient_norm};

use crate::error::{Error, Result};
use crate::recipe::{OptimizerRecipe, Schedule};

/// The parameters that are trained, with their moments.
#[derive(Debug)]
pub struct Optimizer {
    parameters: Vec<(String, Var)>,
    moments: Vec<(Var, Var)>,
    /// Updates done so far.
    pub updates: usize,
}

impl Optimizer {
    /// Moments of zero for every parameter.
    pub fn new(parameters: Vec<(String, Var)>) -> Result<Self> {
        let zeros = |var: &Var| {
            Ok((
                Var::from_tensor(&var.zeros_like()?)?,
                Var::from_tensor(&var.zeros_like()?)?,
            ))
        };
        let moments = parameters
            .iter()
            .map(|(_, var)| zeros(var))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            parameters,
            moments,
            updates: 0,
        })
    }

    /// The parameters, with the names they have in a checkpoint.
    pub fn parameters(&self) -> &[(String, Var)] {
        &self.parameters
    }

    /// The moments by name, as they go into a checkpoint: `first.NAME` and `second.NAME`.
    pub fn state(&self) -> HashMap<String, Tensor> {
        let named = self.parameters.iter().zip(&self.moments);
        named
            .flat_map(|((name, _), (first, second))| {
                [
                    (format!("first.{name}"), first.as_detached_tensor()),
                    (format!("second.{name}"), second.as_detached_tensor()),
                ]
            })
            .collect()
    }

    /// Takes the moments back from a checkpoint's tensors; the name of the first that is missing or misshapen is the
    /// error.
    pub fn restore(
        &mut self,
        state: &HashMap<String, Tensor>,
        updates: usize,
    ) -> std::result::Result<(), String> {
        for ((name, _), (first, second)) in self.parameters.iter().zip(&self.moments) {
            for (prefix, moment) in [("first", first), ("second", second)] {
                let key = format!("{prefix}.{name}");
                let value = state
                    .get(&key)
                    .ok_or_else(|| format!("tensor {key}: expected it, found none"))?;
                moment
                    .set(value)
                    .map_err(|error| format!("tensor {key}: {error}"))?;
            }
        }
        self.updates = updates;
        Ok(())
    }

    /// One update with the sum of the minibatch's gradients; a parameter without one stays. Gives their norm before
    /// clipping.
    ///
    /// # Errors
    /// A norm that is not finite; nothing is changed then.
    pub fn update(
        &mut self,
        recipe: &OptimizerRecipe,
        gradients: &[Option<Tensor>],
        step: usize,
        learning_rate: f64,
        clip: f64,
    ) -> Result<f64> {
        let present: Vec<&Tensor> = gradients.iter().flatten().collect();
        let norm = gradient_norm(&present)?;
        if !norm.is_finite() {
            return Err(Error::NotFinite {
                step,
                what: "the gradient's norm".into(),
                value: norm,
            });
        }
        let scale = if clip > 0.0 && norm > clip {
            clip / norm
        } else {
            1.0
        };
        self.updates += 1;
        for (((_, parameter), (first, second)), gradient) in
            self.parameters.iter().zip(&self.moments).zip(gradients)
        {
            let Some(gradient) = gradient else { continue };
            // Norm weights and biases are vectors; pulling them to zero would only harm.
            let weight_decay = if parameter.rank() > 1 {
                recipe.weight_decay
            } else {
                0.0
            };
            let (beta1, beta2, epsilon) = (recipe.beta1, recipe.beta2, recipe.epsilon);
            let adamw = AdamW {
                learning_rate,
                beta1,
                beta2,
                epsilon,
                weight_decay,
            };
            adamw.update(parameter, gradient, first, second, self.updates, scale)?;
        }
        Ok(norm)
    }
}

/// The learning rate of a step, counted from 1, of a run of `steps`.
///
/// ```
/// use train::recipe::{OptimizerRecipe, Schedule};
/// let recipe = OptimizerRecipe { learning_rate: 1.0, warmup_steps: 2, schedule: Schedule::Linear, ..Default::default() };
/// let rates: Vec<f64> = (1..=6).map(|step| train::optimizer::learning_rate(&recipe, step, 6)).collect();
/// assert_eq!(rates, [0.5, 1.0, 0.8, 0.6, 0.4, 0.2].map(|rate: f64| rate));
/// ```
pub fn learning_rate(recipe: &OptimizerRecipe, step: usize, steps: usize) -> f64 {
    let warmup = recipe.warmup_steps;
    if step <= warmup {
        return recipe.learning_rate * step as f64 / warmup as f64;
    }
    // The rate is still the highest in the last step of the warm-up and would be zero one step behind the end.
    let left =
        (steps + 1).saturating_sub(step) as f64 / (steps + 1).saturating_sub(warmup.max(1)).max(1) as f64;
    recipe.learning_rate
        * match recipe.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
        }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn optimizer(values: &[f64]) -> Optimizer {
        let var = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        Optimizer::new(vec![("w".into(), var)]).unwrap()
    }

    fn values(optimizer: &Optimizer) -> Vec<f64> {
        optimizer.parameters()[0].1.to_vec1().unwrap()
    }

    #[test]
    fn it_finds_the_minimum_of_a_parabola() {
        let recipe = OptimizerRecipe::default();
        let mut optimizer = optimizer(&[3.0, -2.0]);
        for step in 1..=500 {
            let gradient = (optimizer.parameters()[0].1.as_detached_tensor() * 2.0).unwrap();
            optimizer
                .update(&recipe, &[Some(gradient)], step, 0.05, 0.0)
                .unwrap();
        }
        assert!(
            values(&optimizer).iter().all(|value| value.abs() < 0.05),
            "{:?}",
            values(&optimizer)
        );
    }

    #[test]
    fn clipping_scales_and_reports_the_norm_before() {
        let gradient = Tensor::new(&[3.0, 4.0], &Device::Cpu).unwrap();
        let recipe = OptimizerRecipe::default();
        let mut optimizer = optimizer(&[0.0, 0.0]);
        assert_eq!(
            optimizer.update(&recipe, &[Some(gradient)], 1, 0.1, 1.0).unwrap(),
            5.0
        );
        let first: Vec<f64> = optimizer.state()["first.w"].to_vec1().unwrap();
        assert!((first[0] - 0.06).abs() < 1e-12 && (first[1] - 0.08).abs() < 1e-12);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let gradient = Tensor::new(&[f64::NAN, 4.0], &Device::Cpu).unwrap();
        let mut optimizer = optimizer(&[1.0, 2.0]);
        let error = optimizer
            .update(&OptimizerRecipe::default(), &[Some(gradient)], 3, 0.1, 1.0)
            .unwrap_err();
        assert!(error.to_string().contains("step 3"));
        assert_eq!((values(&optimizer), optimizer.updates), (vec![1.0, 2.0], 0));
    }

    #[test]
    fn a_restored_state_continues_exactly() {
        let recipe = OptimizerRecipe::default();
        let gradient = || Some(Tensor::new(&[0.3, -0.4], &Device::Cpu).unwrap());
        let mut whole = optimizer(&[1.0, 2.0]);
        whole.update(&recipe, &[gradient()], 1, 0.1, 0.0).unwrap();
        let mut resumed = optimizer(&values(&whole));
        resumed.restore(&whole.state(), whole.updates).unwrap();
        for optimizer in [&mut whole, &mut resumed] {
            optimizer.update(&recipe, &[gradient()], 2, 0.1, 0.0).unwrap();
        }
        assert_eq!(values(&whole), values(&resumed));
        assert!(
            resumed
                .restore(&HashMap::new(), 1)
                .unwrap_err()
                .contains("first.w")
        );
    }

    #[test]
    fn schedules_warm_up_and_end_near_zero() {
        let rate = |schedule, step| {
            let recipe = OptimizerRecipe {
                learning_rate: 1.0,
                warmup_steps: 10,
                schedule,
                ..Default::default()
            };
            learning_rate(&recipe, step, 100)
        };
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            assert_eq!((rate(schedule, 1), rate(schedule, 10)), (0.1, 1.0));
        }
        assert_eq!(rate(Schedule::Constant, 100), 1.0);
        assert!(rate(Schedule::Linear, 100) < 0.02 && rate(Schedule::Linear, 100) > 0.0);
        assert!(
            rate(Schedule::Cosine, 100) < 0.001 && rate(Schedule::Cosine, 30) > rate(Schedule::Linear, 30)
        );
    }
}
