// Stochastic gradient descent with momentum, Nesterov's look-ahead and weight decay: up to 64 parameters in one launch.
//
//   d = dw + weight_decay * w      velocity = momentum * velocity + d
//   w = w - lr * d                 without momentum
//   w = w - lr * velocity          with momentum;  w - lr * (d + momentum * velocity) with Nesterov's rule
//
// Everything is float32: weights are float32 on the bfloat16 path too, where the layers cast them on the tape, so a
// parameter is its own master copy. The list of parameters is a struct passed by value: it needs no copy to the device,
// so a captured graph holds it. The learning rate is read from the device's memory, so that a captured graph can be
// given a new one.
//
// Tile: blockIdx.y is the parameter; the blocks along x stride over its elements, four at a time (16 bytes) while they
// are aligned.
// Bytes: 20 a parameter with momentum (reads w, dw, velocity; writes w, velocity), 12 without.
// Operations: 6 a parameter, so memory decides; a launch for each of a network's hundred parameters would cost more.
// Held to the book by tests/minigrad/fast/cuda/test_cuda_shim.py::test_sgd_is_the_books (CPU) and
// tests/minigrad/fast/cuda/test_cuda_gpu.py::test_sgd_on_the_gpu (GPU).

#include "ptx.cuh"
#include "device.cuh"

constexpr int LIMIT = 64;

struct Parameter {
    float* w;
    const float* dw;
    float* velocity;  // null without momentum
    long long size;
    float momentum, weight_decay;
    int nesterov, padding;
};

struct Parameters {
    Parameter list[LIMIT];
};

__device__ inline void update(const Parameter& p, float lr, float& w, float dw, float& velocity) {
    float d = fmaf(p.weight_decay, w, dw);
    if (p.velocity) {
        velocity = fmaf(p.momentum, velocity, d);
        d = p.nesterov ? fmaf(p.momentum, velocity, d) : velocity;
    }
    w = fmaf(-lr, d, w);
}

extern "C" __global__ void sgd(Parameters parameters, const float* learning_rate) {
    const Parameter& p = parameters.list[blockIdx.y];
    float lr = *learning_rate;
    long long thread = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    long long step = gridDim.x * static_cast<long long>(blockDim.x);
    long long addresses =
        reinterpret_cast<long long>(p.w) | reinterpret_cast<long long>(p.dw) | reinterpret_cast<long long>(p.velocity);
    long long vectors = addresses % 16 ? 0 : p.size / 4;
    for (long long i = thread; i < vectors; i += step) {
        Vec<float> w = load(p.w + 4 * i), dw = load(p.dw + 4 * i), velocity = {};
        if (p.velocity) velocity = load(p.velocity + 4 * i);
        for (int v = 0; v < 4; ++v) update(p, lr, w.lane[v], dw.lane[v], velocity.lane[v]);
        store(p.w + 4 * i, w);
        if (p.velocity) store(p.velocity + 4 * i, velocity);
    }
    for (long long i = 4 * vectors + thread; i < p.size; i += step) {
        float velocity = p.velocity ? p.velocity[i] : 0.0f;
        update(p, lr, p.w[i], p.dw[i], velocity);
        if (p.velocity) p.velocity[i] = velocity;
    }
}
