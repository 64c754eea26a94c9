//! One pass over the vocabulary, stripe by stripe and tile by tile: the sums of each row, and the gradient for the weight.

use std::ops::Range;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::Head;
use super::tile::{LogitGradients, Online, Scale};
use crate::lanes;
use crate::matmul::{View, multiply};
use crate::packed::{Packed, WIDTH};
use crate::pairs::{Left, Pairs, Right, Strip, round};
use crate::slices::read;

/// Into how many tasks the vocabulary is cut. A constant, so that sums do not depend on the number of threads.
const STRIPES: usize = 16;

/// How many tokens of the vocabulary a tile has.
const TILE: usize = 512;

/// How many rows a tile has.
const ROWS: usize = 128;

/// How many rows are scanned before their stripes are merged; bounds the memory of the slopes.
const PASS: usize = 512;

/// What a scan collects besides the sums.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) targets: Option<&'a [u32]>,
    /// The derivative of each log-probability by its hidden row; needs targets.
    pub(super) slopes: bool,
}

/// What one pass over the vocabulary gives, row by row; what was not wanted is empty.
#[derive(Default)]
pub(super) struct Scan {
    /// The logit of the target.
    pub(super) target_t: Vec<f32>,
    /// The logarithm of the sum of exponentials of the logits.
    pub(super) log_sum_t: Vec<f32>,
    pub(super) entropy_t: Vec<f32>,
    pub(super) slope_t_d: Vec<f32>,
}

/// The sums of every row over the whole vocabulary.
pub(super) fn scan(
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

/// The gradient for the weight, in the weight's shape.
pub(super) fn weight_gradient(
    head: &Head,
    hidden_t_d: &Tensor,
    weight_v_d: &Tensor,
    gradient_t: &Tensor,
) -> Result<Tensor> {
    let (vocabulary, width) = weight_v_d.dims2()?;
    let gradient = read(
        [hidden_t_d, weight_v_d, gradient_t],
        |[hidden, weight, gradient_t]| {
            let left = head.packed.as_ref().map(|_| Left::of_rows(hidden, width));
            let matrices = Matrices {
                hidden,
                weight,
                width,
                inverse: 1.0 / head.temperature,
                rounded: Rounded::of(left.as_ref(), head.packed.as_ref()),
            };
            let mut gradient = vec![0.0; vocabulary * width];
            let stripes = stripes(vocabulary);
            gradient
                .par_chunks_mut(stripes[0].len() * width)
                .zip(stripes)
                .for_each(|(out, stripe)| matrices.weight_gradient(stripe, head, gradient_t, out));
            Ok(gradient)
        },
    )?;
    Tensor::from_vec(gradient, (vocabulary, width), weight_v_d.device())
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
        let right = Right::packed(self.weight, (self.vocabulary, self.width));
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
        let right = Right::turned(self.weight, (self.vocabulary, self.width));
        add_products(&room.left, right, tokens, &mut room.panels, mean_t_d);
    }

    /// Adds the products of the tile's columns with the rows' hidden states to `out_v_d`.
    fn add_gradients(self, tokens: usize, hidden: &[f32], room: &mut Room, out_v_d: &mut [f32]) {
        room.left.take_columns(&room.tile, tokens);
        let right = Right::columns(hidden, self.width);
        add_products(&room.left, right, 0..right.inner, &mut room.panels, out_v_d);
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
