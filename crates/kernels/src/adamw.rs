//! The AdamW optimiser step (Loshchilov and Hutter 2017, arXiv 1711.05101), in place.

use candle_core::{DType, Result, Tensor, Var, bail};

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
        self.update_composed(parameter, gradient, first, second, step, gradient_scale)
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
        let first_moment = ((first.as_tensor() * self.beta1)? + (&gradient * (1.0 - self.beta1))?)?;
        let second_moment = ((second.as_tensor() * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
        let correction1 = 1.0 - self.beta1.powf(step as f64);
        let correction2 = 1.0 - self.beta2.powf(step as f64);
        let root = ((&second_moment / correction2)?.sqrt()? + self.epsilon)?;
        let move_by = ((&first_moment / root)? * (self.learning_rate / correction1))?;
        let kept = (parameter.to_dtype(wide)? * (1.0 - self.learning_rate * self.weight_decay))?;
        first.set(&first_moment.detach())?;
        second.set(&second_moment.detach())?;
        parameter.set(&(kept - move_by)?.to_dtype(parameter.dtype())?.detach())
    }
}

/// The Euclidean norm of all gradients taken as one vector.
///
/// # Errors
/// When a tensor is not of a floating-point type.
pub fn gradient_norm(gradients: &[&Tensor]) -> Result<f64> {
    gradient_norm_composed(gradients)
}

/// [`gradient_norm`] in plain candle operations.
pub fn gradient_norm_composed(gradients: &[&Tensor]) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients {
        let wide = gradient.detach().to_dtype(crate::accumulator(gradient.dtype()))?;
        sum += wide.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
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
