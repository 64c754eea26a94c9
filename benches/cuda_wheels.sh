#!/bin/sh
# A CUDA 13.0 toolkit out of PyPI's wheels, for `cargo build --features cuda` where none is installed (1.8 GB):
#   eval "$(benches/cuda_wheels.sh FOLDER)" && cargo build --release --features cuda --target-dir target/cuda
#
# The wheels lack what only the driver brings, libcuda. Where the machine has no driver a stand-in is made to link with: each
# function in it says that there is no device. A program so linked takes the true one wherever that is.
set -eu
folder=${1:?usage: benches/cuda_wheels.sh FOLDER}
python3 -m venv "$folder" >&2
"$folder/bin/pip" install --quiet "nvidia-cuda-nvcc==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-nvvm==13.0.*" \
    "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cccl==13.0.*" "nvidia-cuda-nvrtc==13.0.*" "nvidia-cublas==13.0.*" \
    nvidia-curand >&2
home=$(echo "$folder"/lib/python3*/site-packages/nvidia/cu13)
home=$(cd "$home" && pwd)

# The linker looks for names without a version, nvcc's own library path is lib64.
for library in "$home"/lib/lib*.so.*; do
    ln -sf "$(basename "$library")" "${library%%.so.*}.so"
done
ln -sfn lib "$home/lib64"
mkdir -p "$home/lib/stubs"
grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" "$home/include/cudaProfilerTypedefs.h" | sort -u |
    sed 's/.*/int &(void) { return 100; }/' | # CUDA_ERROR_NO_DEVICE
    cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$home/lib/stubs/libcuda.so" -x c -
ln -sf libcuda.so "$home/lib/stubs/libcuda.so.1"

echo "export CUDA_HOME='$home' PATH='$home/bin':\"\$PATH\""
echo "export LD_LIBRARY_PATH='$home/lib'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
echo "export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80} # 80 A100, 86 and 89 RTX 30 and 40, 90 H100; later GPUs run what was built for earlier"
