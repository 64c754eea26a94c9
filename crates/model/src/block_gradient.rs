//! The gradients of a block, by the kernels of the CPU: the same bits as candle finds by its record of the operations, with
//! fewer passes over memory, since nothing begins as zeros to be added to. What reaches a tensor by several ways is added in the
//! order in which candle comes to them.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use kernels::Segment;

use crate::block::{Block, Rotation};
use crate::config::Config;
use crate::linear::{Adapter, Linear, Weight};
use crate::{Error, Result};

/// What a block's forward pass leaves for its gradients.
#[derive(Debug)]
pub struct Kept {
    pub(crate) x_t_d: Tensor,
    pub(crate) normed_t_d: Tensor,
    pub(crate) heads: Heads,
    pub(crate) middle_t_d: Tensor,
    pub(crate) inner_normed_t_d: Tensor,
    pub(crate) gate_t_i: Tensor,
    pub(crate) up_t_i: Tensor,
    pub(crate) inner_t_i: Tensor,
}

/// What its attention leaves.
#[derive(Debug)]
pub(crate) struct Heads {
    /// Queries and keys before their norms, where they have some.
    pub(crate) query_t_h_d: Option<Tensor>,
    pub(crate) key_t_g_d: Option<Tensor>,
    /// As they were attended with.
    pub(crate) q_t_h_d: Tensor,
    pub(crate) k_t_g_d: Tensor,
    pub(crate) v_t_g_d: Tensor,
    /// The heads' results side by side.
    pub(crate) mixed_t_a: Tensor,
}

/// What makes a block's gradients beside what it kept.
pub(crate) struct Pass<'a> {
    pub(crate) config: &'a Config,
    pub(crate) dtype: DType,
    pub(crate) segments: &'a [Segment],
    pub(crate) rotation: &'a Rotation,
    /// Where gradients of what trains go.
    pub(crate) store: &'a mut GradStore,
}

impl Pass<'_> {
    fn put(&mut self, parameter: &Tensor, gradient: Tensor) {
        if parameter.track_op() {
            self.store.insert(parameter, gradient);
        }
    }

    /// The gradient before a norm, `past_t_d` added.
    fn norm(
        &mut self,
        x_t_d: &Tensor,
        norm_d: &Tensor,
        gradient_t_d: &Tensor,
        past_t_d: Option<&Tensor>,
    ) -> Result<Tensor> {
        let epsilon = self.config.norm_epsilon;
        let (x_gradient_t_d, norm_gradient_d) =
            kernels::rms_norm_gradients(x_t_d, norm_d, epsilon, gradient_t_d, past_t_d)?;
        self.put(norm_d, norm_gradient_d);
        Ok(x_gradient_t_d)
    }

    /// The gradient of queries or keys as a linear layer made them, rows x (heads times head width).
    fn turned_back(
        &mut self,
        made_t_h_d: Option<&Tensor>,
        norm_d: Option<&Tensor>,
        gradient_t_h_d: &Tensor,
    ) -> Result<Tensor> {
        let Rotation { cos_t_r, sin_t_r } = self.rotation;
        let mut gradient_t_h_d = kernels::rotate_gradient(gradient_t_h_d, cos_t_r, sin_t_r)?;
        if let (Some(made_t_h_d), Some(norm_d)) = (made_t_h_d, norm_d) {
            gradient_t_h_d = self.norm(made_t_h_d, norm_d, &gradient_t_h_d, None)?;
        }
        Ok(gradient_t_h_d.flatten_from(1)?)
    }

    /// The gradient before a linear layer, added to `onto_t_i` where that is given.
    fn linear(
        &mut self,
        linear: &Linear,
        x_t_i: &Tensor,
        gradient_t_o: &Tensor,
        mut onto_t_i: Option<Tensor>,
    ) -> Result<Tensor> {
        if !linear.mixed.is_empty() {
            return Err(Error::Request(
                "a pass over several models has no gradients".into(),
            ));
        }
        if let Some(bias_o) = linear.bias_o.as_ref().filter(|bias_o| bias_o.track_op()) {
            self.store.insert(bias_o, gradient_t_o.sum(0)?);
        }
        if let Some(adapter) = &linear.adapter {
            let Adapter { a_r_i, b_o_r, scale } = adapter;
            let inner_t_r = adapter.inner(x_t_i, self.dtype)?.detach();
            let inner_gradient_t_r = self.weight(b_o_r, &inner_t_r, gradient_t_o, None)?;
            let inner_gradient_t_r = inner_gradient_t_r.affine(*scale, 0.0)?;
            onto_t_i = Some(self.weight(a_r_i, x_t_i, &inner_gradient_t_r, onto_t_i)?);
        }
        self.weight(&linear.weight, x_t_i, gradient_t_o, onto_t_i)
    }

    /// The gradient before a product with a weight, added to `onto_t_i` where that is given.
    fn weight(
        &mut self,
        weight: &Weight,
        x_t_i: &Tensor,
        gradient_t_o: &Tensor,
        onto_t_i: Option<Tensor>,
    ) -> Result<Tensor> {
        Ok(match weight {
            Weight::Tensor(weight_o_i) => {
                if weight_o_i.track_op() {
                    let gradient_o_i = kernels::product_weight_gradient(gradient_t_o, x_t_i, self.dtype)?;
                    self.store.insert(weight_o_i, gradient_o_i);
                }
                kernels::product_gradient(gradient_t_o, weight_o_i, self.dtype, onto_t_i)?
            }
            Weight::Packed(packed) => kernels::product_packed_gradient(gradient_t_o, packed, onto_t_i)?,
        })
    }
}

impl Block {
    /// The gradient of the block's input from that of its output; those of its weights go into the pass's store.
    pub(crate) fn gradients(
        &self,
        kept: &Kept,
        gradient_t_d: &Tensor,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor> {
        let inner_gradient_t_i = pass.linear(&self.down, &kept.inner_t_i, gradient_t_d, None)?;
        let (gate_gradient_t_i, up_gradient_t_i) =
            kernels::swiglu_gradients(&kept.gate_t_i, &kept.up_t_i, &inner_gradient_t_i)?;
        let normed_t_d = &kept.inner_normed_t_d;
        let normed_gradient_t_d = pass.linear(&self.up, normed_t_d, &up_gradient_t_i, None)?;
        let normed_gradient_t_d = pass.linear(
            &self.gate,
            normed_t_d,
            &gate_gradient_t_i,
            Some(normed_gradient_t_d),
        )?;
        let middle_gradient_t_d = pass.norm(
            &kept.middle_t_d,
            &self.inner_norm_d,
            &normed_gradient_t_d,
            Some(gradient_t_d),
        )?;
        let normed_gradient_t_d = self.attention_gradients(kept, &middle_gradient_t_d, pass)?;
        pass.norm(
            &kept.x_t_d,
            &self.input_norm_d,
            &normed_gradient_t_d,
            Some(&middle_gradient_t_d),
        )
    }

    /// From the gradient of what attention adds to the residual stream to that of what it reads.
    fn attention_gradients(&self, kept: &Kept, gradient_t_d: &Tensor, pass: &mut Pass<'_>) -> Result<Tensor> {
        let (heads, normed_t_d) = (&kept.heads, &kept.normed_t_d);
        let mixed_gradient_t_a = pass.linear(&self.output, &heads.mixed_t_a, gradient_t_d, None)?;
        let [q_gradient_t_h_d, k_gradient_t_g_d, v_gradient_t_g_d] = kernels::attend_gradients(
            &heads.q_t_h_d,
            &heads.k_t_g_d,
            &heads.v_t_g_d,
            pass.segments,
            &mixed_gradient_t_a.reshape(heads.q_t_h_d.shape())?,
        )?;
        let (made, norms) = (&heads.query_t_h_d, &self.query_norm_d);
        let query_gradient_t_a = pass.turned_back(made.as_ref(), norms.as_ref(), &q_gradient_t_h_d)?;
        let (made, norms) = (&heads.key_t_g_d, &self.key_norm_d);
        let key_gradient_t_a = pass.turned_back(made.as_ref(), norms.as_ref(), &k_gradient_t_g_d)?;
        let value_gradient_t_a = v_gradient_t_g_d.flatten_from(1)?;
        let gradient_t_d = pass.linear(&self.value, normed_t_d, &value_gradient_t_a, None)?;
        let gradient_t_d = pass.linear(&self.key, normed_t_d, &key_gradient_t_a, Some(gradient_t_d))?;
        pass.linear(&self.query, normed_t_d, &query_gradient_t_a, Some(gradient_t_d))
    }
}
