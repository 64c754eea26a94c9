//! What the tests of this crate share: numbers without a random generator, and comparison of values and gradients.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor, Var};

use crate::Packed;

/// A variable of numbers in -1..1, the same for the same seed.
pub(crate) fn noise(seed: u32, shape: &[usize]) -> Var {
    let count = shape.iter().product::<usize>() as u32;
    let values: Vec<f32> = (0..count)
        .map(|n| {
            let hash = n
                .wrapping_add(seed.wrapping_mul(7919))
                .wrapping_mul(2_654_435_761);
            let hash = (hash ^ (hash >> 15)).wrapping_mul(2_246_822_519);
            (hash ^ (hash >> 13)) as f32 / 2f32.powi(31) - 1.0
        })
        .collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor of a test");
    Var::from_tensor(&tensor).expect("a variable of a test")
}

/// [`noise`] in blocks, and what it dequantizes to.
pub(crate) fn quantized(
    seed: u32,
    shape: &[usize; 2],
    kind: GgmlDType,
    dtype: DType,
) -> Result<(Packed, Tensor)> {
    let blocks = QTensor::quantize(&noise(seed, shape), kind)?;
    let packed = Packed::quantized(kind, &blocks.data()?, (shape[0], shape[1]), dtype)?;
    Ok((packed, blocks.dequantize(&Device::Cpu)?))
}

/// Fails unless the two agree to `tolerance`, relative to the larger of 1 and the largest value.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims());
    let flat =
        |tensor: &Tensor| -> Result<Vec<f64>> { tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1() };
    let (found, expected) = (flat(found).expect("values"), flat(expected).expect("values"));
    let scale = expected.iter().fold(1f64, |max, x| max.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found - expected).abs() / scale;
        assert!(
            error <= tolerance,
            "element {index}: {found} is not {expected} (error {error:e})"
        );
    }
}

/// Holds a fused form to its twin: the values, and the gradient of a weighted sum of them for every variable.
pub(crate) fn assert_twins<const N: usize>(
    variables: [&Var; N],
    fused: impl Fn() -> Result<Tensor>,
    composed: impl Fn() -> Result<Tensor>,
    tolerance: f64,
) {
    let (found, expected) = (fused().expect("fused"), composed().expect("composed"));
    assert_close(&found, &expected, tolerance);
    let weights = noise(99, expected.dims());
    let gradients = |output: &Tensor| (output * weights.as_tensor()).and_then(|x| x.sum_all()?.backward());
    let (found, expected) = (
        gradients(&found).expect("gradients"),
        gradients(&expected).expect("gradients"),
    );
    for variable in variables {
        let name = |which| format!("{which} gradient");
        assert_close(
            found
                .get(variable)
                .unwrap_or_else(|| panic!("{}", name("no fused"))),
            expected
                .get(variable)
                .unwrap_or_else(|| panic!("{}", name("no composed"))),
            tolerance,
        );
    }
}

/// Holds the gradients of a twin, in f64, to central differences of a weighted sum of its values.
pub(crate) fn assert_differences<const N: usize>(
    inputs: [&Var; N],
    twin: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let wide: Vec<Var> = inputs
        .iter()
        .map(|input| {
            input
                .to_dtype(DType::F64)
                .and_then(|x| Var::from_tensor(&x))
                .expect("f64")
        })
        .collect();
    let weighted = |values: &[Tensor]| -> Result<Tensor> {
        let output = twin(values)?;
        (&output * noise(99, output.dims()).to_dtype(output.dtype())?)?
            .sum_all()?
            .to_dtype(DType::F64)
    };
    let tensors: Vec<Tensor> = wide.iter().map(|x| x.as_tensor().clone()).collect();
    let gradients = weighted(&tensors).and_then(|x| x.backward()).expect("backward");
    for (index, variable) in wide.iter().enumerate() {
        let values: Vec<f64> = variable.flatten_all().and_then(|x| x.to_vec1()).expect("values");
        let shifted = |element: usize, by: f64| -> Result<f64> {
            let mut values = values.clone();
            values[element] += by;
            let mut tensors: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
            tensors[index] = Tensor::from_vec(values, variable.dims(), &Device::Cpu)?;
            weighted(&tensors)?.to_scalar()
        };
        let expected: Vec<f64> = (0..values.len())
            .map(|n| (shifted(n, 1e-5).expect("value") - shifted(n, -1e-5).expect("value")) / 2e-5)
            .collect();
        let expected = Tensor::from_vec(expected, variable.dims(), &Device::Cpu).expect("tensor");
        assert_close(gradients.get(variable).expect("a gradient"), &expected, 1e-7);
    }
}
