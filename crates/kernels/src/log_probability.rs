//! The language-model head fused with the log-softmax: log-probabilities of chosen tokens.
//!
//! The logits of all rows over the whole vocabulary never exist. The vocabulary is cut into [`STRIPES`], one task
//! each; a task walks its stripe in tiles of [`TILE`] tokens by [`ROWS`] rows that stay in the cache, and keeps for
//! each row the running maximum, the sum of exponentials and what else is asked for (an online softmax, Milakov and
//! Gimelshein 2018, arXiv 1805.02867). The stripes are then merged in order.
//!
//! The gradient for the hidden rows is `slope * gradient` with `slope = (weight[target] - sum_v p_v weight[v]) /
//! temperature`. The slope does not depend on the gradient, so the forward pass collects it while it has the
//! exponentials, and the backward pass costs nothing more. The gradient for the weight, wanted only where the head is
//! trained, needs the logits once more and recomputes them tile by tile.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::bf16::{self, Strip, rounded};
use crate::lanes;
use crate::matmul::{View, multiply};
use crate::packed::{Packed, WIDTH};
use crate::pairs::{Left, Pairs, Right, Source, round};
use crate::slices::{fusible, read};

/// Into how many tasks the vocabulary is cut. A constant, so that sums do not depend on the number of threads.
const STRIPES: usize = 16;

/// How many tokens of the vocabulary a tile has.
const TILE: usize = 512;

/// How many rows a tile has.
const ROWS: usize = 128;

/// How many rows are scanned before their stripes are merged; bounds the memory of the slopes.
const PASS: usize = 512;

/// The log-probability of `targets[n]` under `softmax(hidden[n] @ weight^T / temperature)`, one f32 a row.
///
/// Gradients for `hidden_t_d`, and for `weight_v_d` where it is a variable or depends on one.
///
/// # Errors
/// When the shapes do not fit, a target is outside the vocabulary or the temperature is not above zero.
pub fn log_probability(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    check_targets(hidden_t_d, weight_v_d, targets)?;
    if fusible(&[hidden_t_d, weight_v_d]) {
        Ok(log_probability_and_entropy(hidden_t_d, weight_v_d, targets, temperature)?.0)
    } else {
        log_probability_composed(hidden_t_d, weight_v_d, targets, temperature)
    }
}

/// [`log_probability`] and [`entropy`] for the price of the first.
///
/// # Errors
/// As [`log_probability`].
pub fn log_probability_and_entropy(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<(Tensor, Vec<f32>)> {
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    if !fusible(&[hidden_t_d, weight_v_d]) {
        let log_probability = log_probability_composed(hidden_t_d, weight_v_d, targets, temperature)?;
        return Ok((
            log_probability,
            entropy_composed(hidden_t_d, weight_v_d, temperature)?,
        ));
    }
    fused(hidden_t_d, weight_v_d, targets, temperature, None)
}

/// [`log_probability`] of hidden rows and a weight rounded to bf16 ([`crate::product_bf16`]); so are exponentials and
/// gradients where they are multiplied. Sums stay f32.
///
/// # Errors
/// As [`log_probability`].
pub fn log_probability_bf16(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    if !bf16::available() || !fusible(&[hidden_t_d, weight_v_d]) {
        let (hidden_t_d, weight_v_d) = (rounded(hidden_t_d)?, rounded(weight_v_d)?);
        return log_probability(&hidden_t_d, &weight_v_d, targets, temperature);
    }
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    let packed = Packed::new(weight_v_d, DType::BF16)?;
    Ok(fused(hidden_t_d, weight_v_d, targets, temperature, Some(packed))?.0)
}

/// [`log_probability_bf16`] in plain candle operations; the whole logits exist.
pub fn log_probability_bf16_composed(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    let (hidden_t_d, weight_v_d) = (rounded(hidden_t_d)?, rounded(weight_v_d)?);
    log_probability_composed(&hidden_t_d, &weight_v_d, targets, temperature)
}

/// Log-probabilities and entropies, multiplied as bf16 where the weight is there as such too.
fn fused(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
    packed: Option<Packed>,
) -> Result<(Tensor, Vec<f32>)> {
    let weight_v_d = weight_v_d.contiguous()?;
    let wanted = Wanted {
        targets: Some(targets),
        slopes: hidden_t_d.track_op(),
    };
    let scan = scan(hidden_t_d, &weight_v_d, packed.as_ref(), temperature, wanted)?;
    let (device, rows) = (hidden_t_d.device(), targets.len());
    let head = Head {
        log_probability_t: scan
            .target_t
            .iter()
            .zip(&scan.log_sum_t)
            .map(|(target, sum)| target - sum)
            .collect(),
        log_sum_t: scan.log_sum_t,
        slope_t_d: Tensor::from_vec(
            scan.slope_t_d,
            (if wanted.slopes { rows } else { 0 }, hidden_t_d.dim(1)?),
            device,
        )?,
        targets: targets.into(),
        temperature: temperature as f32,
        packed,
    };
    Ok((hidden_t_d.apply_op2(&weight_v_d, head)?, scan.entropy_t))
}

/// [`log_probability`] in plain candle operations; the whole logits exist.
pub fn log_probability_composed(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    check(hidden_t_d, weight_v_d, temperature)?;
    check_targets(hidden_t_d, weight_v_d, targets)?;
    let targets_t_1 = Tensor::new(targets, hidden_t_d.device())?.reshape((targets.len(), 1))?;
    log_softmax(hidden_t_d, weight_v_d, temperature)?
        .gather(&targets_t_1, 1)?
        .squeeze(1)
}

/// The entropy, in nats, of each row's distribution over the vocabulary; no gradient.
///
/// # Errors
/// As [`log_probability`].
pub fn entropy(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Vec<f32>> {
    check(hidden_t_d, weight_v_d, temperature)?;
    if !fusible(&[hidden_t_d, weight_v_d]) {
        return entropy_composed(hidden_t_d, weight_v_d, temperature);
    }
    let wanted = Wanted {
        targets: None,
        slopes: false,
    };
    Ok(scan(hidden_t_d, weight_v_d, None, temperature, wanted)?.entropy_t)
}

/// [`entropy`] in plain candle operations; the whole logits exist.
pub fn entropy_composed(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Vec<f32>> {
    check(hidden_t_d, weight_v_d, temperature)?;
    let log_probability_t_v = log_softmax(&hidden_t_d.detach(), &weight_v_d.detach(), temperature)?;
    let entropy_t = (log_probability_t_v.exp()? * &log_probability_t_v)?
        .sum(D::Minus1)?
        .neg()?;
    entropy_t.to_dtype(DType::F32)?.to_vec1()
}

fn log_softmax(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits_t_v = hidden_t_d
        .matmul(&weight_v_d.t()?)?
        .to_dtype(crate::accumulator(hidden_t_d.dtype()))?;
    let logits_t_v = (logits_t_v / temperature)?;
    let centred_t_v = logits_t_v.broadcast_sub(&logits_t_v.max_keepdim(D::Minus1)?.detach())?;
    centred_t_v.broadcast_sub(&centred_t_v.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

fn check(hidden_t_d: &Tensor, weight_v_d: &Tensor, temperature: f64) -> Result<()> {
    let (_, width) = hidden_t_d.dims2()?;
    let (vocabulary, weight_width) = weight_v_d.dims2()?;
    if width != weight_width || width == 0 || vocabulary == 0 {
        bail!(
            "log_probability: expected weight [v, {width}], found {:?}",
            weight_v_d.dims()
        )
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        bail!("log_probability: expected a temperature above zero, found {temperature}")
    }
    Ok(())
}

fn check_targets(hidden_t_d: &Tensor, weight_v_d: &Tensor, targets: &[u32]) -> Result<()> {
    let (rows, vocabulary) = (hidden_t_d.dim(0)?, weight_v_d.dim(0)?);
    if targets.len() != rows {
        bail!(
            "log_probability: expected a target for each of {rows} rows, found {}",
            targets.len()
        )
    }
    if let Some(row) = targets.iter().position(|&target| target as usize >= vocabulary) {
        bail!(
            "log_probability: the target {} of row {row} is outside a vocabulary of {vocabulary}",
            targets[row]
        )
    }
    Ok(())
}

/// What a scan collects besides the sums.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    targets: Option<&'a [u32]>,
    /// The derivative of each log-probability by its hidden row; needs targets.
    slopes: bool,
}

/// What one pass over the vocabulary gives, row by row; what was not wanted is empty.
#[derive(Default)]
struct Scan {
    /// The logit of the target.
    target_t: Vec<f32>,
    /// The logarithm of the sum of exponentials of the logits.
    log_sum_t: Vec<f32>,
    entropy_t: Vec<f32>,
    slope_t_d: Vec<f32>,
}

fn scan(
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    packed: Option<&Packed>,
    temperature: f64,
    wanted: Wanted,
) -> Result<Scan> {
    let (width, vocabulary) = (weight_v_d.dim(1)?, weight_v_d.dim(0)?);
    read([hidden_t_d, weight_v_d], |[hidden, weight]| {
        let mut scan = Scan::default();
        for (pass, hidden) in hidden.chunks(PASS * width).enumerate() {
            let rows = hidden.len() / width;
            let targets = wanted.targets.map(|targets| &targets[pass * PASS..][..rows]);
            let wanted = Wanted { targets, ..wanted };
            let left = packed.map(|_| Left::of_rows(hidden, width));
            let head = Matrices {
                hidden,
                weight,
                width,
                inverse: (1.0 / temperature) as f32,
                rounded: Rounded::of(left.as_ref(), packed),
            };
            let stripes: Vec<Stripe> = stripes(vocabulary)
                .into_par_iter()
                .map_init(Room::default, |room, range| head.scan_stripe(range, wanted, room))
                .collect();
            head.merge(&stripes, wanted, &mut scan);
        }
        Ok(scan)
    })
}

/// Cuts the vocabulary into at most [`STRIPES`] ranges, each from a panel's beginning on.
fn stripes(vocabulary: usize) -> Vec<Range<usize>> {
    let len = vocabulary.div_ceil(STRIPES).next_multiple_of(WIDTH);
    (0..vocabulary)
        .step_by(len)
        .map(|first| first..(first + len).min(vocabulary))
        .collect()
}

/// The running sums of one stripe of the vocabulary, row by row.
struct Stripe {
    top_t: Vec<f32>,
    /// Of `e^(logit - top)`.
    sum_t: Vec<f32>,
    /// Of `e^(logit - top) * (logit - top)`.
    moment_t: Vec<f32>,
    /// Of `e^(logit - top) * weight`.
    mean_t_d: Vec<f32>,
    /// The rows whose target is in the stripe, and its logit.
    targets: Vec<(usize, f32)>,
}

/// The operands of the head.
#[derive(Clone, Copy)]
struct Matrices<'a> {
    hidden: &'a [f32],
    weight: &'a [f32],
    width: usize,
    /// One over the temperature.
    inverse: f32,
    /// The operands as products of bf16 take them, where they are to be.
    rounded: Option<Rounded<'a>>,
}

/// The operands of the head rounded to bf16.
#[derive(Clone, Copy)]
struct Rounded<'a> {
    hidden: &'a Left,
    weight: &'a [Pairs],
    vocabulary: usize,
    width: usize,
}

/// Where a task keeps what it makes on the way.
#[derive(Default)]
struct Room {
    tile: Vec<f32>,
    left: Left,
    panels: Vec<Pairs>,
}

impl<'a> Rounded<'a> {
    fn of(hidden: Option<&'a Left>, packed: Option<&'a Packed>) -> Option<Self> {
        let (vocabulary, width) = packed?.dims();
        Some(Self {
            hidden: hidden?,
            weight: packed?.pairs()?,
            vocabulary,
            width,
        })
    }

    /// Puts the products of some rows with some tokens into the tile.
    fn logits(self, rows: Range<usize>, tokens: Range<usize>, room: &mut Room) {
        let mut out: Vec<&mut [f32]> = room.tile.chunks_exact_mut(tokens.len()).collect();
        let right = Right {
            outputs: self.vocabulary,
            inner: self.width,
            numbers: Source::Packed(self.weight),
        };
        Strip {
            left: self.hidden,
            right,
            inner: 0..self.width,
            row: rows.start,
            panel: tokens.start / WIDTH,
            accumulate: false,
            out: &mut out,
            room: &mut room.panels,
        }
        .multiply();
    }

    /// Adds the products of the tile with the weight of its tokens to `mean_t_d`.
    fn add_means(self, tokens: Range<usize>, room: &mut Room, mean_t_d: &mut [f32]) {
        room.left.take_rows(&room.tile, tokens.len());
        let right = Right {
            outputs: self.width,
            inner: self.vocabulary,
            numbers: Source::Turned(self.weight),
        };
        add_products(&room.left, right, tokens, &mut room.panels, mean_t_d);
    }

    /// Adds the products of the tile's columns with the rows' hidden states to `out_v_d`.
    fn add_gradients(self, tokens: usize, hidden: &[f32], room: &mut Room, out_v_d: &mut [f32]) {
        room.left.take_columns(&room.tile, tokens);
        let inner = hidden.len() / self.width;
        let right = Right {
            outputs: self.width,
            inner,
            numbers: Source::Columns(hidden),
        };
        add_products(&room.left, right, 0..inner, &mut room.panels, out_v_d);
    }
}

/// Adds the products of all rows of `left` to the rows of `out`.
fn add_products(left: &Left, right: Right, inner: Range<usize>, room: &mut Vec<Pairs>, out: &mut [f32]) {
    let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(right.outputs).collect();
    Strip {
        left,
        right,
        inner,
        row: 0,
        panel: 0,
        accumulate: true,
        out: &mut out,
        room,
    }
    .multiply();
}

impl Matrices<'_> {
    /// Puts the logits of some rows over some tokens into the tile.
    fn logits(self, rows: Range<usize>, tokens: Range<usize>, room: &mut Room) {
        let width = self.width;
        room.tile.resize(rows.len() * tokens.len(), 0.0);
        if let Some(rounded) = self.rounded {
            rounded.logits(rows, tokens, room);
            return lanes::run(Scale {
                values: &mut room.tile,
                factor: self.inverse,
            });
        }
        let hidden = View::new(&self.hidden[rows.start * width..], rows.len(), width, width);
        let weight = View::new(&self.weight[tokens.start * width..], tokens.len(), width, width);
        multiply(
            &mut room.tile,
            tokens.len(),
            hidden,
            weight.transposed(),
            self.inverse,
            false,
        );
    }

    /// Calls `body` for each tile of a stripe.
    fn tiles(self, stripe: Range<usize>, mut body: impl FnMut(Range<usize>, Range<usize>)) {
        let rows = self.hidden.len() / self.width;
        for token in stripe.clone().step_by(TILE) {
            for row in (0..rows).step_by(ROWS) {
                body(row..rows.min(row + ROWS), token..stripe.end.min(token + TILE));
            }
        }
    }

    fn scan_stripe(self, range: Range<usize>, wanted: Wanted, room: &mut Room) -> Stripe {
        let (rows, width) = (self.hidden.len() / self.width, self.width);
        let kept = if wanted.slopes { width } else { 0 };
        let mut stripe = Stripe {
            top_t: vec![f32::NEG_INFINITY; rows],
            sum_t: vec![0.0; rows],
            moment_t: vec![0.0; rows],
            mean_t_d: vec![0.0; rows * kept],
            targets: Vec::new(),
        };
        self.tiles(range, |rows, tokens| {
            self.logits(rows.clone(), tokens.clone(), room);
            let tile = &mut room.tile;
            for (row, &target) in rows
                .clone()
                .zip(wanted.targets.map_or(&[][..], |targets| &targets[rows.start..]))
            {
                let target = target as usize;
                if tokens.contains(&target) {
                    let logit = tile[(row - rows.start) * tokens.len() + target - tokens.start];
                    stripe.targets.push((row, logit));
                }
            }
            lanes::run(Online {
                tile,
                tokens: tokens.len(),
                top_t: &mut stripe.top_t[rows.clone()],
                sum_t: &mut stripe.sum_t[rows.clone()],
                moment_t: &mut stripe.moment_t[rows.clone()],
                mean_t_d: &mut stripe.mean_t_d[rows.start * kept..rows.end * kept],
            });
            if !wanted.slopes {
                return;
            }
            let mean_t_d = &mut stripe.mean_t_d[rows.start * width..rows.end * width];
            if let Some(rounded) = self.rounded {
                return rounded.add_means(tokens, room, mean_t_d);
            }
            let exponents = View::new(tile, rows.len(), tokens.len(), tokens.len());
            let weight = View::new(&self.weight[tokens.start * width..], tokens.len(), width, width);
            multiply(mean_t_d, width, exponents, weight, 1.0, true);
        });
        stripe
    }

    /// Adds the rows of a pass to the scan, from the sums of their stripes.
    fn merge(self, stripes: &[Stripe], wanted: Wanted, scan: &mut Scan) {
        let (rows, width) = (self.hidden.len() / self.width, self.width);
        let first = scan.log_sum_t.len();
        scan.slope_t_d
            .resize(if wanted.slopes { (first + rows) * width } else { 0 }, 0.0);
        for row in 0..rows {
            let top = stripes
                .iter()
                .fold(f32::NEG_INFINITY, |top, stripe| top.max(stripe.top_t[row]));
            let factors: Vec<f32> = stripes
                .iter()
                .map(|stripe| (stripe.top_t[row] - top).exp())
                .collect();
            let (mut sum, mut moment) = (0.0, 0.0);
            for (stripe, factor) in stripes.iter().zip(&factors) {
                sum += factor * stripe.sum_t[row];
                moment += factor * (stripe.moment_t[row] + (stripe.top_t[row] - top) * stripe.sum_t[row]);
            }
            scan.log_sum_t.push(top + sum.ln());
            scan.entropy_t.push(sum.ln() - moment / sum);
            if let Some(targets) = wanted.targets.filter(|_| wanted.slopes) {
                let slope_d = &mut scan.slope_t_d[(first + row) * width..][..width];
                for (stripe, factor) in stripes.iter().zip(&factors) {
                    let mean_d = &stripe.mean_t_d[row * width..][..width];
                    lanes::add_scaled(slope_d, mean_d, -factor / sum * self.inverse);
                }
                let weight_d = &self.weight[targets[row] as usize * width..][..width];
                match self.rounded {
                    Some(_) => lanes::add_scaled(slope_d, &round(weight_d), self.inverse),
                    None => lanes::add_scaled(slope_d, weight_d, self.inverse),
                }
            }
        }
        if wanted.targets.is_some() {
            scan.target_t.resize(first + rows, 0.0);
        }
        for &(row, logit) in stripes.iter().flat_map(|stripe| &stripe.targets) {
            scan.target_t[first + row] = logit;
        }
    }

    /// The gradient for a stripe of the weight: `sum_t (onehot - p) * gradient / temperature * hidden`.
    fn weight_gradient(self, stripe: Range<usize>, head: &Head, gradient_t: &[f32], out: &mut [f32]) {
        let (width, first) = (self.width, stripe.start);
        let mut room = Room::default();
        self.tiles(stripe, |rows, tokens| {
            self.logits(rows.clone(), tokens.clone(), &mut room);
            let tile = &mut room.tile;
            let gradient_t = &gradient_t[rows.clone()];
            let log_sum_t = &head.log_sum_t[rows.clone()];
            lanes::run(LogitGradients {
                tile,
                tokens: tokens.len(),
                log_sum_t,
                gradient_t,
                inverse: self.inverse,
            });
            for (row, &target) in head.targets[rows.clone()].iter().enumerate() {
                if tokens.contains(&(target as usize)) {
                    tile[row * tokens.len() + target as usize - tokens.start] +=
                        gradient_t[row] * self.inverse;
                }
            }
            let out = &mut out[(tokens.start - first) * width..][..tokens.len() * width];
            if let Some(rounded) = self.rounded {
                let hidden = &self.hidden[rows.start * width..rows.end * width];
                return rounded.add_gradients(tokens.len(), hidden, &mut room, out);
            }
            let slopes = View::new(tile, rows.len(), tokens.len(), tokens.len());
            let hidden = View::new(&self.hidden[rows.start * width..], rows.len(), width, width);
            multiply(out, width, slopes.transposed(), hidden, 1.0, true);
        });
    }
}

/// The finished forward pass as a node of candle's graph.
struct Head {
    log_probability_t: Vec<f32>,
    log_sum_t: Vec<f32>,
    /// Without rows where the hidden rows need no gradient.
    slope_t_d: Tensor,
    targets: Arc<[u32]>,
    temperature: f32,
    /// The weight as bf16, where products are those of bf16.
    packed: Option<Packed>,
}

impl CustomOp2 for Head {
    fn name(&self) -> &'static str {
        "log_probability"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((
            CpuStorage::F32(self.log_probability_t.clone()),
            self.targets.len().into(),
        ))
    }

    fn bwd(
        &self,
        hidden_t_d: &Tensor,
        weight_v_d: &Tensor,
        _: &Tensor,
        gradient_t: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let hidden_gradient = hidden_t_d
            .track_op()
            .then(|| self.slope_t_d.broadcast_mul(&gradient_t.unsqueeze(1)?))
            .transpose()?;
        let (vocabulary, width) = weight_v_d.dims2()?;
        let weight_gradient = || {
            let gradient = read(
                [hidden_t_d, weight_v_d, gradient_t],
                |[hidden, weight, gradient_t]| {
                    let left = self.packed.as_ref().map(|_| Left::of_rows(hidden, width));
                    let head = Matrices {
                        hidden,
                        weight,
                        width,
                        inverse: 1.0 / self.temperature,
                        rounded: Rounded::of(left.as_ref(), self.packed.as_ref()),
                    };
                    let mut gradient = vec![0.0; vocabulary * width];
                    let stripes = stripes(vocabulary);
                    gradient
                        .par_chunks_mut(stripes[0].len() * width)
                        .zip(stripes)
                        .for_each(|(out, stripe)| head.weight_gradient(stripe, self, gradient_t, out));
                    Ok(gradient)
                },
            )?;
            Tensor::from_vec(gradient, (vocabulary, width), weight_v_d.device())
        };
        Ok((
            hidden_gradient,
            weight_v_d.track_op().then(weight_gradient).transpose()?,
        ))
    }
}

/// Takes a tile of logits into the running sums of its rows, and leaves `e^(logit - top)` in it.
struct Online<'a> {
    tile: &'a mut [f32],
    tokens: usize,
    top_t: &'a mut [f32],
    sum_t: &'a mut [f32],
    moment_t: &'a mut [f32],
    /// Empty where slopes are not wanted.
    mean_t_d: &'a mut [f32],
}

impl WithSimd for Online<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.mean_t_d.len() / self.top_t.len();
        for (row, logits) in self.tile.chunks_exact_mut(self.tokens).enumerate() {
            let (top, before) = (lanes::max(logits), self.top_t[row]);
            if top > before {
                // Minus infinity at first, where the sums are zero and the factor does not matter.
                let (fall, factor) = (before - top, lanes::exp(before - top));
                if before > f32::NEG_INFINITY {
                    self.moment_t[row] = factor * (self.moment_t[row] + fall * self.sum_t[row]);
                    self.sum_t[row] *= factor;
                    lanes::scale(&mut self.mean_t_d[row * width..(row + 1) * width], factor);
                }
                self.top_t[row] = top;
            }
            let (sum, moment) = exp_with_moment(logits, self.top_t[row]);
            self.sum_t[row] += sum;
            self.moment_t[row] += moment;
        }
    }
}

/// Puts `e^(x - shift)` in place of each `x`; gives the sums of that and of its product with `x - shift`.
#[inline(always)]
fn exp_with_moment(values: &mut [f32], shift: f32) -> (f32, f32) {
    let (mut sums, mut moments) = ([0.0; lanes::LANES], [0.0; lanes::LANES]);
    let (blocks, rest) = values.as_chunks_mut::<{ lanes::LANES }>();
    for block in blocks {
        for lane in 0..lanes::LANES {
            let centred = block[lane] - shift;
            block[lane] = lanes::exp(centred);
            sums[lane] += block[lane];
            moments[lane] += block[lane] * centred;
        }
    }
    let (mut sum, mut moment) = (lanes::total(sums), lanes::total(moments));
    for value in rest {
        let centred = *value - shift;
        *value = lanes::exp(centred);
        sum += *value;
        moment += *value * centred;
    }
    (sum, moment)
}

/// Multiplies all by one number.
struct Scale<'a> {
    values: &'a mut [f32],
    factor: f32,
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        lanes::scale(self.values, self.factor);
    }
}

/// Turns a tile of logits into `-p * gradient / temperature`.
struct LogitGradients<'a> {
    tile: &'a mut [f32],
    tokens: usize,
    log_sum_t: &'a [f32],
    gradient_t: &'a [f32],
    inverse: f32,
}

impl WithSimd for LogitGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.log_sum_t.iter().zip(self.gradient_t);
        for (logits, (log_sum, gradient)) in self.tile.chunks_exact_mut(self.tokens).zip(rows) {
            let factor = -gradient * self.inverse;
            for logit in logits {
                *logit = lanes::exp(*logit - log_sum) * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::fixtures::{assert_close, assert_differences, assert_twins, noise};

    fn inputs(rows: usize, vocabulary: usize, width: usize) -> Result<(Var, Var, Vec<u32>)> {
        let (hidden, weight) = (noise(1, &[rows, width]), noise(2, &[vocabulary, width]));
        // Logits of some size, so that the running maximum moves.
        hidden.set(&(hidden.as_tensor() * 5.0)?.detach())?;
        let targets = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
        Ok((hidden, weight, targets))
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // The last two cross a tile, a block of rows, and a pass.
        for (rows, vocabulary, width) in [(1, 1, 1), (5, 7, 3), (130, 40, 8), (3, 9000, 16), (515, 33, 5)] {
            let (hidden, weight, targets) = inputs(rows, vocabulary, width)?;
            for temperature in [1.0, 0.6] {
                assert_twins(
                    [&hidden, &weight],
                    || log_probability(&hidden, &weight, &targets, temperature),
                    || log_probability_composed(&hidden, &weight, &targets, temperature),
                    5e-6,
                );
                let found = entropy(&hidden, &weight, temperature)?;
                let expected = entropy_composed(&hidden, &weight, temperature)?;
                let device = hidden.device();
                assert_close(
                    &Tensor::new(found, device)?,
                    &Tensor::new(expected, device)?,
                    5e-6,
                );
            }
        }
        Ok(())
    }

    #[test]
    fn as_bf16_it_is_near_its_twin() -> Result<()> {
        for (rows, vocabulary, width) in [(1, 1, 1), (5, 7, 3), (130, 40, 8), (3, 9000, 17), (515, 33, 300)] {
            let (hidden, weight, targets) = inputs(rows, vocabulary, width)?;
            let found = log_probability_bf16(&hidden, &weight, &targets, 0.6)?;
            let expected = log_probability_bf16_composed(&hidden, &weight, &targets, 0.6)?;
            assert_close(&found, &expected, 5e-6);
            // Probabilities are rounded before they are multiplied, here; and gradients after it, there.
            assert_twins(
                [&hidden, &weight],
                || log_probability_bf16(&hidden, &weight, &targets, 0.6),
                || log_probability_bf16_composed(&hidden, &weight, &targets, 0.6),
                2f64.powi(-7),
            );
        }
        Ok(())
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient_and_frozen_rows_still_give_values() -> Result<()> {
        let (hidden, weight, targets) = inputs(4, 11, 6)?;
        let frozen = weight.as_detached_tensor();
        let gradients = log_probability(&hidden, &frozen, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        let expected = log_probability_composed(&hidden, &weight, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        assert_close(
            gradients.get(&hidden).unwrap(),
            expected.get(&hidden).unwrap(),
            2e-6,
        );
        assert!(gradients.get(&frozen).is_none());

        let rows = hidden.as_detached_tensor();
        let gradients = log_probability(&rows, &weight, &targets, 1.0)?
            .sum_all()?
            .backward()?;
        assert_close(
            gradients.get(&weight).unwrap(),
            expected.get(&weight).unwrap(),
            2e-6,
        );
        assert!(!log_probability(&rows, &frozen, &targets, 1.0)?.track_op());
        Ok(())
    }

    #[test]
    fn log_probabilities_of_all_tokens_sum_to_one_and_both_at_once_agree() -> Result<()> {
        let (hidden, weight, _) = inputs(1, 23, 4)?;
        let rows = hidden.broadcast_as((23, 4))?;
        let targets: Vec<u32> = (0..23).collect();
        let (log_probability, entropies) = log_probability_and_entropy(&rows, &weight, &targets, 0.7)?;
        let log_probability: Vec<f32> = log_probability.to_vec1()?;
        let total: f32 = log_probability.iter().map(|x| x.exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        let expected: f32 = log_probability.iter().map(|x| -x * x.exp()).sum();
        assert!(
            (entropies[0] - expected).abs() < 1e-5,
            "{} is not {expected}",
            entropies[0]
        );
        Ok(())
    }

    #[test]
    fn composed_gradients_equal_differences() {
        assert_differences([&noise(1, &[3, 4]), &noise(2, &[5, 4])], |x| {
            log_probability_composed(&x[0], &x[1], &[4, 0, 2], 0.8)
        });
    }

    #[test]
    fn not_a_number_in_a_row_stays_in_that_row() -> Result<()> {
        let (hidden, weight, targets) = inputs(2, 40, 4)?;
        let broken = Tensor::cat(
            &[&hidden.narrow(0, 0, 1)?, &(hidden.narrow(0, 1, 1)? * f64::NAN)?],
            0,
        )?;
        let values: Vec<f32> = log_probability(&broken, &weight, &targets, 1.0)?.to_vec1()?;
        assert!(values[0].is_finite() && values[1].is_nan(), "{values:?}");
        Ok(())
    }

    #[test]
    fn what_a_user_can_get_wrong_is_refused() -> Result<()> {
        let (hidden, weight, _) = inputs(2, 5, 4)?;
        let message = |targets: &[u32], temperature| {
            log_probability(&hidden, &weight, targets, temperature)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&[1, 5], 1.0).contains("target 5 of row 1 is outside a vocabulary of 5"));
        assert!(message(&[1], 1.0).contains("a target for each of 2 rows, found 1"));
        assert!(message(&[1, 2], 0.0).contains("above zero"));
        Ok(())
    }
}
