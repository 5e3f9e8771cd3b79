// What happens to single tokens between the products: embedding, RMSNorm,
// quantisation to int8, rotary embedding with the cache write, and the choice
// of the next token.

// x[token][k] f32 from a table in the FP16 weight layout; clears best[token].
extern "C" __global__ void __launch_bounds__(256) embed(const u16* table, const u32* tokens, float* x, int hidden, u64* best) {
    pdl_launch();
    pdl_wait();
    int row = (int)tokens[blockIdx.x];
    for (int k = threadIdx.x; k < hidden; k += blockDim.x) {
        x[(i64)blockIdx.x * hidden + k] = half_to_float(table[at_f16(row, k, hidden)]);
    }
    if (threadIdx.x == 0) best[blockIdx.x] = 0;
}

// Sum over the block, the same in every thread, in one order. 256 threads.
DEV float block_sum(float v, float* shared) {
    for (int d = 16; d; d >>= 1) v = __fadd_rn(v, __shfl_xor_sync(FULL, v, d));
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < 8; i++) sum = __fadd_rn(sum, shared[i]);
    __syncthreads();
    return sum;
}

// RMSNorm of token rows[block] (or block itself) of x [tokens][hidden] f32 to
// 16-bit activations; clears best[block].
extern "C" __global__ void __launch_bounds__(256)
    rms_norm(const float* x, const int* rows, const float* weight, float eps, int hidden, u16* to, int bf16, u64* best) {
    __shared__ float shared[8];
    pdl_launch();
    pdl_wait();
    int token = blockIdx.x;
    const float* from = x + (i64)(rows ? rows[token] : token) * hidden;
    float sum = 0.0f;
    for (int k = threadIdx.x; k < hidden; k += 256) sum = __fmaf_rn(from[k], from[k], sum);
    sum = block_sum(sum, shared);
    float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)hidden), eps)));
    for (int k = threadIdx.x; k < hidden; k += 256) {
        float v = __fmul_rn(__fmul_rn(from[k], scale), weight[k]);
        to[at16(token, k, hidden)] = bf16 ? pack1<true>(v) : pack1<false>(v);
    }
    if (threadIdx.x == 0) best[token] = 0;
}

// LLM.int8: one token's FP16 activations to int8, its outliers by rising
// column set aside. 256 threads; a thread holds 8 columns at a time.
extern "C" __global__ void __launch_bounds__(256)
    quantise_tokens(const u16* x, int columns, float threshold, u8* to, float* token_absmax, int* outlier_count, u32* outliers) {
    __shared__ float largest_of[8];
    __shared__ int count_of[8];
    pdl_launch();
    pdl_wait();
    int token = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    // The first 8,192 columns stay in registers, all loads on their way at once.
    constexpr int HELD = 4;
    uint4 held[HELD];
    auto load = [&](int base) {
        const int k = base + threadIdx.x * 8;
        return k < columns ? *(const uint4*)(x + at16(token, k, columns)) : make_uint4(0, 0, 0, 0);
    };
    auto number = [](const uint4& v, int i) {
        const u32 word = i < 2 ? v.x : i < 4 ? v.y : i < 6 ? v.z : v.w;
        return (u16)(i & 1 ? word >> 16 : word);
    };
#pragma unroll
    for (int n = 0; n < HELD; n++) held[n] = load(n * 2048);
    float largest = 0.0f;
    auto measure = [&](const uint4& v) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float a = fabsf(half_to_float(number(v, i)));
            if (threshold == 0.0f || a < threshold) largest = fmaxf(largest, a);
        }
    };
#pragma unroll
    for (int n = 0; n < HELD; n++) measure(held[n]);
    for (int base = HELD * 2048; base < columns; base += 2048) measure(load(base));
    for (int d = 16; d; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, d));
    if (lane == 0) largest_of[warp] = largest;
    __syncthreads();
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, largest_of[i]);
    float scale = largest > 0.0f ? __fdiv_rn(127.0f, largest) : 0.0f;
    int written = 0; // by the whole block
    auto put = [&](int base, const uint4& v) {
        const int k = base + threadIdx.x * 8;
        u32 mask = 0;
        u64 codes = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float a = half_to_float(number(v, i));
            bool outlier = threshold > 0.0f && fabsf(a) >= threshold;
            int code = outlier ? 0 : __float2int_rn(__fmul_rn(a, scale));
            codes |= (u64)(u8)(signed char)code << (8 * i);
            mask |= outlier ? 1u << i : 0u;
        }
        if (k < columns) *(u64*)(to + at8(token, k, columns)) = codes;
        const int mine = __popc(mask);
        if (!__syncthreads_or(mine)) return;
        int before = mine; // inclusive sum over the warp
        for (int d = 1; d < 32; d <<= 1) {
            int v = __shfl_up_sync(FULL, before, d);
            if (lane >= d) before += v;
        }
        if (lane == 31) count_of[warp] = before;
        __syncthreads();
        int at = written + before - mine;
        for (int i = 0; i < 8; i++) {
            if (i < warp) at += count_of[i];
            written += count_of[i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (mask >> i & 1) outliers[(i64)token * columns + at++] = (u32)(k + i) << 16 | number(v, i);
        __syncthreads();
    };
#pragma unroll
    for (int n = 0; n < HELD; n++)
        if (n * 2048 < columns) put(n * 2048, held[n]);
    for (int base = HELD * 2048; base < columns; base += 2048) put(base, load(base));
    if (threadIdx.x == 0) token_absmax[token] = largest, outlier_count[token] = written;
}

// Rotates queries and keys of qkv [token][(heads + 2 kv_heads) * head_dim] f32
// and puts queries in q [token][heads * head_dim], keys and values in the cache.
extern "C" __global__ void __launch_bounds__(256)
    rope_cache(const float* qkv, const int* slots, const int* positions, const float* cosines, const float* sines,
               int heads, int kv_heads, int head_dim, int context, u16* q, u16* keys, u16* values) {
    pdl_launch();
    pdl_wait();
    const int token = blockIdx.x, half = head_dim / 2, slot = slots[token], position = positions[token];
    const int log2 = 31 - __clz(half); // head sizes are powers of two
    const float* from = qkv + (i64)token * (heads + 2 * kv_heads) * head_dim;
    for (int i = threadIdx.x; i < (heads + kv_heads) * half; i += blockDim.x) {
        const int head = i >> log2, d = i & (half - 1);
        float a = from[head * head_dim + d], b = from[head * head_dim + half + d];
        float c = cosines[(i64)position * half + d], s = sines[(i64)position * half + d];
        u16 low, high;
        rotate(a, b, c, s, low, high);
        u16* to = head < heads ? q + (i64)token * heads * head_dim + head * head_dim
                               : keys + cached_at(slot, head - heads, position, kv_heads, context, head_dim);
        to[d] = low, to[half + d] = high;
    }
    for (int i = threadIdx.x; i < kv_heads * head_dim; i += blockDim.x) {
        const int head = i >> (log2 + 1), d = i & (head_dim - 1);
        values[cached_at(slot, head, position, kv_heads, context, head_dim) + d] =
            float_to_half(from[(heads + kv_heads) * head_dim + i]);
    }
}

// The next token of every row; positions move on, so that the next step can
// follow at once.
extern "C" __global__ void choose(const u64* best, int n, u32* tokens, int* positions, u32* host) {
    pdl_launch();
    pdl_wait();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    u32 token = 0xffffffffu - (u32)best[i];
    tokens[i] = token;
    positions[i] += 1;
    host[i] = token;
}
