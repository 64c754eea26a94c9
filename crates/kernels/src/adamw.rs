//! The AdamW optimiser step (Loshchilov and Hutter 2017, arXiv 1711.05101), in place.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::lanes::{self, LANES};
use crate::slices::{BLOCK, distinct, fusible, read, write};

/// The settings of the optimiser; the moments belong to the caller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The step size.
    pub learning_rate: f64,
    /// How much of the mean gradient a step keeps.
    pub beta1: f64,
    /// How much of the mean squared gradient a step keeps.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// The share of the parameter, times the learning rate, that a step takes away; not part of the gradient.
    pub weight_decay: f64,
}

impl AdamW {
    /// Moves `parameter` one step and updates its `first` and `second` moments, which start as zeros.
    ///
    /// `step` counts from 1. The gradient is multiplied by `gradient_scale` first (1 / accumulated batches, or the
    /// factor of gradient clipping).
    ///
    /// # Errors
    /// When the shapes differ, two of the four share storage, or `step` is 0.
    pub fn update(
        &self,
        parameter: &Var,
        gradient: &Tensor,
        first: &Var,
        second: &Var,
        step: usize,
        gradient_scale: f64,
    ) -> Result<()> {
        let in_place = [parameter, first, second]
            .iter()
            .all(|variable| variable.is_contiguous());
        if !in_place || !fusible(&[parameter, gradient, first, second]) {
            return self.update_composed(parameter, gradient, first, second, step, gradient_scale);
        }
        check(parameter, gradient, first, second, step)?;
        distinct(&[parameter, gradient, first, second])?;
        let factors = self.factors(step, gradient_scale);
        read([gradient], |[gradient]| {
            write(parameter, |parameter| {
                write(first, |first| {
                    write(second, |second| {
                        step_all(factors, parameter, gradient, first, second);
                        Ok(())
                    })
                })
            })
        })
    }

    /// [`AdamW::update`] in plain candle operations. Moments keep their own type, which may be wider.
    pub fn update_composed(
        &self,
        parameter: &Var,
        gradient: &Tensor,
        first: &Var,
        second: &Var,
        step: usize,
        gradient_scale: f64,
    ) -> Result<()> {
        check(parameter, gradient, first, second, step)?;
        let wide = first.dtype();
        let gradient = (gradient.detach().to_dtype(wide)? * gradient_scale)?;
        let first_moment = ((first.as_detached_tensor() * self.beta1)? + (&gradient * (1.0 - self.beta1))?)?;
        let second_moment =
            ((second.as_detached_tensor() * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
        let correction1 = 1.0 - self.beta1.powf(step as f64);
        let correction2 = 1.0 - self.beta2.powf(step as f64);
        let root = ((&second_moment / correction2)?.sqrt()? + self.epsilon)?;
        let change = ((&first_moment / root)? * (self.learning_rate / correction1))?;
        let decay = 1.0 - self.learning_rate * self.weight_decay;
        let kept = (parameter.as_detached_tensor().to_dtype(wide)? * decay)?;
        first.set(&first_moment)?;
        second.set(&second_moment)?;
        parameter.set(&(kept - change)?.to_dtype(parameter.dtype())?)
    }

    fn factors(&self, step: usize, gradient_scale: f64) -> Factors {
        let correction1 = 1.0 - self.beta1.powf(step as f64);
        let correction2 = 1.0 - self.beta2.powf(step as f64);
        Factors {
            gradient_scale: gradient_scale as f32,
            keep1: self.beta1 as f32,
            add1: (1.0 - self.beta1) as f32,
            keep2: self.beta2 as f32,
            add2: (1.0 - self.beta2) as f32,
            correction2: (1.0 / correction2) as f32,
            epsilon: self.epsilon as f32,
            decay: (1.0 - self.learning_rate * self.weight_decay) as f32,
            rate: (self.learning_rate / correction1) as f32,
        }
    }
}

/// The Euclidean norm of all gradients taken as one vector.
///
/// # Errors
/// When a tensor is not of a floating-point type.
pub fn gradient_norm(gradients: &[&Tensor]) -> Result<f64> {
    if !fusible(gradients) {
        return gradient_norm_composed(gradients);
    }
    let mut sum = 0.0;
    for gradient in gradients {
        // Blocks are summed in parallel, and their sums in order.
        let blocks: Vec<f64> = read([gradient], |[gradient]| {
            Ok(gradient
                .par_chunks(BLOCK)
                .map(|values| lanes::run(SumSquares { values }))
                .collect())
        })?;
        sum += blocks.iter().sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// [`gradient_norm`] in plain candle operations.
pub fn gradient_norm_composed(gradients: &[&Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients {
        // Metal has no f64.
        let wide = if gradient.device().is_metal() {
            DType::F32
        } else {
            DType::F64
        };
        let squares = gradient.detach().to_dtype(wide)?.sqr()?.sum_all()?;
        sum += squares
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F64)?
            .to_scalar::<f64>()?;
    }
    Ok(sum.sqrt())
}

fn check(parameter: &Var, gradient: &Tensor, first: &Var, second: &Var, step: usize) -> Result<()> {
    let shape = parameter.shape();
    if gradient.shape() != shape || first.shape() != shape || second.shape() != shape {
        bail!(
            "adamw: expected {:?} for gradient and moments, found {:?}, {:?}, {:?}",
            shape,
            gradient.shape(),
            first.shape(),
            second.shape()
        )
    }
    if step == 0 {
        bail!("adamw: steps count from 1, found 0")
    }
    Ok(())
}

fn step_all(
    factors: Factors,
    parameter: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    parameter
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(first.par_chunks_mut(BLOCK).zip(second.par_chunks_mut(BLOCK)))
        .for_each(|((parameter, gradient), (first, second))| {
            lanes::run(Step {
                factors,
                parameter,
                gradient,
                first,
                second,
            });
        });
}

/// What a step multiplies with, the same for every element.
#[derive(Clone, Copy)]
struct Factors {
    gradient_scale: f32,
    keep1: f32,
    add1: f32,
    keep2: f32,
    add2: f32,
    correction2: f32,
    epsilon: f32,
    decay: f32,
    rate: f32,
}

struct Step<'a> {
    factors: Factors,
    parameter: &'a mut [f32],
    gradient: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl WithSimd for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let f = self.factors;
        let moments = self.first.iter_mut().zip(self.second);
        for ((parameter, gradient), (first, second)) in
            self.parameter.iter_mut().zip(self.gradient).zip(moments)
        {
            let gradient = gradient * f.gradient_scale;
            *first = *first * f.keep1 + gradient * f.add1;
            *second = *second * f.keep2 + gradient * gradient * f.add2;
            let root = (*second * f.correction2).sqrt() + f.epsilon;
            *parameter = *parameter * f.decay - *first / root * f.rate;
        }
    }
}

struct SumSquares<'a> {
    values: &'a [f32],
}

impl WithSimd for SumSquares<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let mut lanes = [0.0; LANES];
        let (blocks, rest) = self.values.as_chunks::<LANES>();
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(block[lane]) * f64::from(block[lane]);
            }
        }
        lanes.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{assert_close, noise};

    const ADAMW: AdamW = AdamW {
        learning_rate: 0.03,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };

    type Update = fn(&AdamW, &Var, &Tensor, &Var, &Var, usize, f64) -> Result<()>;

    /// The textbook, an element at a time in f64.
    fn reference(parameter: &mut [f64], gradients: &[Vec<f64>], scale: f64) {
        let (mut first, mut second) = (vec![0.0; parameter.len()], vec![0.0; parameter.len()]);
        for (step, gradient) in (1..).zip(gradients) {
            for n in 0..parameter.len() {
                let gradient = gradient[n] * scale;
                first[n] = 0.9 * first[n] + 0.1 * gradient;
                second[n] = 0.95 * second[n] + 0.05 * gradient * gradient;
                let mean = first[n] / (1.0 - 0.9f64.powi(step));
                let square = second[n] / (1.0 - 0.95f64.powi(step));
                parameter[n] -= 0.03 * 0.1 * parameter[n];
                parameter[n] -= 0.03 * mean / (square.sqrt() + 1e-8);
            }
        }
    }

    #[test]
    fn five_steps_equal_the_textbook() -> Result<()> {
        for shape in [&[3, 5][..], &[BLOCK + 3]] {
            let gradients: Vec<Var> = (0..5).map(|seed| noise(10 + seed, shape)).collect();
            let wide = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
            let mut expected = wide(&noise(1, shape))?;
            let wide_gradients: Vec<_> = gradients.iter().map(|x| wide(x)).collect::<Result<_>>()?;
            reference(&mut expected, &wide_gradients, 0.25);
            let expected = Tensor::from_vec(expected, shape, &Device::Cpu)?;
            for update in [AdamW::update as Update, AdamW::update_composed] {
                let parameter = noise(1, shape);
                let (first, second) = (noise(2, shape), noise(3, shape));
                first.set(&first.zeros_like()?.detach())?;
                second.set(&second.zeros_like()?.detach())?;
                for (step, gradient) in (1..).zip(&gradients) {
                    update(&ADAMW, &parameter, gradient, &first, &second, step, 0.25)?;
                }
                assert_close(&parameter, &expected, 1e-6);
            }
        }
        Ok(())
    }

    #[test]
    fn shared_storage_and_a_step_of_zero_are_refused() {
        let [a, b, c] = [1, 2, 3].map(|seed| noise(seed, &[4]));
        assert!(ADAMW.update(&a, &a, &b, &c, 1, 1.0).is_err());
        assert!(ADAMW.update(&a, &b, &c, &c, 1, 1.0).is_err());
        let error = ADAMW
            .update(&a, &noise(4, &[4]), &b, &c, 0, 1.0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("count from 1"), "{error}");
    }

    #[test]
    fn the_norm_is_that_of_one_long_vector() -> Result<()> {
        let gradients = [noise(1, &[3, 7]), noise(2, &[2 * BLOCK + 5])];
        let gradients = [gradients[0].as_tensor(), gradients[1].as_tensor()];
        let expected = gradient_norm_composed(&gradients)?;
        assert!((gradient_norm(&gradients)? - expected).abs() < 1e-9 * expected);
        let three_four = Tensor::new(&[3f32, 0., 4.], &Device::Cpu)?;
        assert_eq!(gradient_norm(&[&three_four])?, 5.0);
        assert_eq!(gradient_norm(&[])?, 0.0);
        Ok(())
    }
}
