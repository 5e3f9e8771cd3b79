// Products of a packed weight with activations: y[token][row] = sum over k.
// `few_*` serves up to 64 tokens: one tile of rows a block, its warps share the
// segments of k. `many_*` serves any number: 128 rows by 128 or 64 tokens a
// block. Both add in the order that common.cuh states, so their bits agree.

// --- weights in registers: 64 columns of a tile, as words of four mma
template <int KIND> struct Unit;
template <> struct Unit<F16_WEIGHT> { uint4 v[4]; };
template <> struct Unit<BIT4_WEIGHT> { uint4 v[1]; };
template <> struct Unit<INT8_WEIGHT> { uint4 v[2]; };

template <int KIND> DEV void load_unit(Unit<KIND>& unit, const uint4* tile, int chunk, int lane) {
    constexpr int N = sizeof(unit.v) / 16;
#pragma unroll
    for (int i = 0; i < N; i++) unit.v[i] = load_stream(tile + ((i64)chunk * N + i) * 32 + lane);
}

#define PAD 20 // floats a token takes in `partial`: 16 rows, spread over the banks

// NT groups of 8 tokens.
template <int KIND, bool BF, int NT, int WHAT>
DEV void few(const uint4* weight, const Parts& parts, const void* x, int columns, int tokens,
             const float* table, const float* map, const Scales8& scales, const Output& out) {
    extern __shared__ float shared[];
    const int warps = blockDim.x >> 5, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tile = blockIdx.x, chunks = columns >> 6;
    const int segments = (columns + SEGMENT - 1) / SEGMENT;
    const int rounds = (segments + warps - 1) / warps;
    float* partial = shared; // [2, or 1 for a single round][warps][8 * NT][PAD]
    u32* values = (u32*)shared + (rounds > 1 ? 2 : 1) * warps * 8 * NT * PAD; // [16][32]: the table, once a bank
    constexpr int UNITS = SEGMENT / 64;
    constexpr int BYTES = KIND == INT8_WEIGHT ? 1 : 2; // of an activation

    const uint4* mine = weight + (i64)tile * chunks * (sizeof(Unit<KIND>) / 16) * 32;
    Unit<KIND> unit[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int chunk = warp * UNITS + u;
        if (chunk < chunks) load_unit<KIND>(unit[u], mine, chunk, lane);
    }
    Place place[2];
    const float factor = KIND == BIT4_WEIGHT ? factor_of<BF>(table) : 1.0f, inverse = __fdiv_rn(1.0f, factor);
    if (KIND == BIT4_WEIGHT) {
        place[0] = place_of(parts, tile * 2);
        place[1] = place_of(parts, tile * 2 + 1);
        for (int i = threadIdx.x; i < 512; i += blockDim.x) values[i] = value_bits<BF>(table[i >> 5], factor);
        __syncthreads();
    }
    pdl_launch();
    pdl_wait();

    // Every thread finishes some of the 16 x 8 * NT outputs, always the same.
    constexpr int OUTPUTS = 16 * 8 * NT;
    const int most = (OUTPUTS + blockDim.x - 1) / blockDim.x;
    float total[NT >= 4 ? NT / 2 : 2];
    int total8[NT >= 4 ? NT / 2 : 2];
#pragma unroll
    for (int i = 0; i < (NT >= 4 ? NT / 2 : 2); i++) total[i] = 0.0f, total8[i] = 0;

    for (int round = 0; round < rounds; round++) {
        const int segment = round * warps + warp;
        float acc[NT][4];
        int acc8[NT][4];
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[n][i] = 0.0f, acc8[n][i] = 0;
        u32 scale[2] = {0, 0}; // of chunk t of the segment, rows g and g + 8
        if (KIND == BIT4_WEIGHT && segment < segments) {
            int chunk = segment * UNITS + t;
            if (chunk < chunks)
                for (int h = 0; h < 2; h++) {
                    const Part& part = parts.part[place[h].part];
                    i64 block = ((i64)(place[h].row + g) * columns + chunk * 64) >> parts.block_shift;
                    scale[h] = scale_bits<BF>(absmax_of(part, block, map), inverse);
                }
        }
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const int chunk = segment * UNITS + u;
            if (chunk < chunks) { // the same for the whole warp
                // B fragments: 8 tokens by 64 columns are 4 (int8: 2) mma.
                constexpr int STEPS = KIND == INT8_WEIGHT ? 2 : 4;
                // With many tokens their registers would not suffice for all at once.
                constexpr int AHEAD = NT <= 2 ? STEPS : 1;
                u32 b[NT][AHEAD][2];
                auto load_x = [&](int s) {
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        const u32* from = (const u32*)x + (i64)n * 8 * columns * BYTES / 4 + (i64)chunk * 128 * BYTES + lane;
                        bool there = n * 8 + g < tokens;
                        b[n][s % AHEAD][0] = there ? from[s * 64] : 0u;
                        b[n][s % AHEAD][1] = there ? from[s * 64 + 32] : 0u;
                    }
                };
                if (AHEAD == STEPS)
#pragma unroll
                    for (int s = 0; s < STEPS; s++) load_x(s);
                Scale<BF> sc[2];
                if (KIND == BIT4_WEIGHT)
#pragma unroll
                    for (int h = 0; h < 2; h++) take_scale(sc[h], __shfl_sync(FULL, scale[h], (lane & 28) | u));
#pragma unroll
                for (int s = 0; s < STEPS; s++) {
                    if (AHEAD < STEPS) load_x(s);
                    u32 a[4];
                    if (KIND == BIT4_WEIGHT) {
                        const u32 word = s == 0 ? unit[u].v[0].x : s == 1 ? unit[u].v[0].y : s == 2 ? unit[u].v[0].z : unit[u].v[0].w;
#pragma unroll
                        for (int r = 0; r < 4; r++) {
                            u32 low = r == 0 ? word << 5 : word >> (8 * r - 5);
                            u32 high = r == 0 ? word << 1 : word >> (8 * r - 1);
                            a[r] = scaled_values(values[(low & 0x1e0) | lane], values[(high & 0x1e0) | lane], sc[r & 1]);
                        }
                    } else {
                        const uint4 v = unit[u].v[s < (int)(sizeof(unit[u].v) / 16) ? s : 0];
                        a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
                    }
#pragma unroll
                    for (int n = 0; n < NT; n++) {
                        if (KIND == INT8_WEIGHT) mma8(acc8[n], a, b[n][s % AHEAD][0], b[n][s % AHEAD][1]);
                        else mma16<BF>(acc[n], a, b[n][s % AHEAD][0], b[n][s % AHEAD][1]);
                    }
                }
            }
            const int next = (segment + warps) * UNITS + u;
            if (next < chunks) load_unit<KIND>(unit[u], mine, next, lane);
        }
        float* buffer = partial + (round & 1) * warps * 8 * NT * PAD;
        if (segment < segments) {
            float* to = buffer + warp * 8 * NT * PAD;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float v = KIND == INT8_WEIGHT ? __int_as_float(acc8[n][i]) : acc[n][i];
                    to[(n * 8 + 2 * t + (i & 1)) * PAD + g + 8 * (i >> 1)] = v;
                }
        }
        __syncthreads();
        const int there = segments - round * warps < warps ? segments - round * warps : warps;
#pragma unroll
        for (int i = 0; i < (NT >= 4 ? NT / 2 : 2); i++) {
            int e = threadIdx.x + i * blockDim.x;
            if (i < most && e < OUTPUTS) {
                const float* from = buffer + (e >> 4) * PAD + (e & 15);
                for (int w = 0; w < there; w++) {
                    float v = from[w * 8 * NT * PAD];
                    if (KIND == INT8_WEIGHT) total8[i] += __float_as_int(v);
                    else total[i] = __fadd_rn(total[i], v);
                }
            }
        }
    }

    // Outputs e: row e % 16 of the tile, token e / 16.
#pragma unroll
    for (int i = 0; i < (NT >= 4 ? NT / 2 : 2); i++) {
        int e = threadIdx.x + i * blockDim.x;
        if (i >= most || (e & ~31) >= OUTPUTS) break; // whole warps stay together
        int token = e >> 4, row = tile * 16 + (e & 15);
        bool real = token < tokens && row < out.rows;
        float y = 0.0f;
        if (real) y = KIND == INT8_WEIGHT ? result8(total8[i], row, token, scales, (const u8*)weight, columns) : total[i];
        float before = WHAT == ADD && real ? out.to[(i64)token * out.rows + row] : 0.0f;
        u64 best = finish<WHAT>(y, before, real, token, e, tile, out);
        if (WHAT == LIKELIEST) offer(best, token, tokens, e, out);
    }
}

// --- many tokens. TN tokens a block; 8 warps, 4 by 2, each 32 rows by TN / 2.
#define STAGES 3
template <int KIND, bool BF, int TN, int WHAT>
DEV void many(const uint4* weight, const void* x, int columns, int tokens, const Scales8& scales, const Output& out) {
    extern __shared__ uint4 stage[];
    pdl_launch();
    pdl_wait();
    // In units of 16 bytes. A step is 128 bytes of k: 4 mma.
    constexpr int A = 8 * 4 * 32, B = TN * 8;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tiles = (out.rows + 15) >> 4, tile0 = blockIdx.x * 8, token0 = blockIdx.y * TN;
    const int bytes = KIND == INT8_WEIGHT ? columns : 2 * columns; // of a row of k
    // The last step may be half; columns are a multiple of 64.
    const int steps = (bytes + 127) >> 7, line = bytes >> 5; // mma of a whole row
    const int wr = warp & 3, wt = warp >> 2;
    constexpr int NT = TN / 16; // groups of 8 tokens a warp

    auto load = [&](int step) {
        uint4* to = stage + (step % STAGES) * (A + B);
        for (int i = threadIdx.x; i < A; i += 256) { // [tile][4 mma][lane]
            int tile = tile0 + (i >> 7), m = step * 4 + (i >> 5 & 3);
            bool there = tile < tiles && m < line;
            copy16(to + i, weight + (there ? ((i64)tile * line + m) * 32 + (i & 31) : 0), there);
        }
        for (int i = threadIdx.x; i < B; i += 256) { // [token / 8][8 core matrices][8 rows]
            int eight = (token0 >> 3) + (i >> 6), m = step * 8 + (i >> 3 & 7);
            bool there = eight * 8 < tokens && m < line * 2;
            copy16(to + A + i, (const uint4*)x + (there ? ((i64)eight * (line * 2) + m) * 8 + (i & 7) : 0), there);
        }
        copy_commit();
    };
    float acc[2][NT][4], total[2][NT][4];
    int acc8[2][NT][4];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[r][n][i] = total[r][n][i] = 0.0f, acc8[r][n][i] = 0;

    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) load(s);
        else copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        else copy_commit();
        const uint4* a_from = stage + (step % STAGES) * (A + B) + (wr * 2) * 128 + lane;
        const u32* b_from = (const u32*)(stage + (step % STAGES) * (A + B) + A) + (wt * NT) * 256 + lane;
#pragma unroll
        for (int m = 0; m < 4; m++) {
            u32 a[2][4], b[NT][2];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint4 v = a_from[r * 128 + m * 32];
                a[r][0] = v.x, a[r][1] = v.y, a[r][2] = v.z, a[r][3] = v.w;
            }
#pragma unroll
            for (int n = 0; n < NT; n++) b[n][0] = b_from[n * 256 + m * 64], b[n][1] = b_from[n * 256 + m * 64 + 32];
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    if (KIND == INT8_WEIGHT) mma8(acc8[r][n], a[r], b[n][0], b[n][1]);
                    else mma16<BF>(acc[r][n], a[r], b[n][0], b[n][1]);
                }
        }
        // A segment is 4 steps of 16-bit columns.
        if (KIND != INT8_WEIGHT && ((step & 3) == 3 || step + 1 == steps)) {
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) total[r][n][i] = __fadd_rn(total[r][n][i], acc[r][n][i]), acc[r][n][i] = 0.0f;
        }
    }
    copy_wait<0>();

    float before[2][NT][4];
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
        load_before8<WHAT>(before[i / NT][i % NT], token0 + (wt * NT + i % NT) * 8, tokens, tile0 + wr * 2 + i / NT, lane, out);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int tile = tile0 + wr * 2 + r;
        if (tile >= tiles) continue;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const int token = token0 + (wt * NT + n) * 8;
            float y[4];
#pragma unroll
            for (int i = 0; i < 4; i++) { // rows g and g + 8, tokens 2t and 2t + 1
                const int row = tile * 16 + g + 8 * (i >> 1), of = token + 2 * t + (i & 1);
                y[i] = total[r][n][i];
                if (KIND == INT8_WEIGHT) y[i] = of < tokens && row < out.rows ? result8(acc8[r][n][i], row, of, scales, (const u8*)weight, columns) : 0.0f;
            }
            finish8_and_offer<WHAT>(y, before[r][n], token, tokens, tile, lane, out);
        }
    }
}

#define FEW(NAME, KIND, BF, NT, WHAT)                                                                                  \
    extern "C" __global__ void __launch_bounds__((NT >= 4 ? 256 : 512), 1) NAME(const uint4* weight, Parts parts,           \
        const void* x, int columns, int tokens, const float* table, const float* map, Scales8 scales, Output out) {    \
        few<KIND, BF, NT, WHAT>(weight, parts, x, columns, tokens, table, map, scales, out);                           \
    }
#define MANY(NAME, KIND, BF, TN, WHAT)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                               \
        NAME(const uint4* weight, const void* x, int columns, int tokens, Scales8 scales, Output out) {                \
        many<KIND, BF, TN, WHAT>(weight, x, columns, tokens, scales, out);                                             \
    }
#define ALL_TOKENS(NAME, KIND, BF, WHAT)    \
    FEW(few_##NAME##_8, KIND, BF, 1, WHAT)  \
    FEW(few_##NAME##_16, KIND, BF, 2, WHAT) \
    FEW(few_##NAME##_32, KIND, BF, 4, WHAT) \
    FEW(few_##NAME##_64, KIND, BF, 8, WHAT)
#define LINEAR(NAME, KIND, BF)             \
    ALL_TOKENS(NAME##_store, KIND, BF, STORE) \
    ALL_TOKENS(NAME##_add, KIND, BF, ADD)     \
    ALL_TOKENS(NAME##_swiglu, KIND, BF, SWIGLU)
#define WIDE(NAME, KIND, BF)                        \
    MANY(many_##NAME##_store_128, KIND, BF, 128, STORE)   \
    MANY(many_##NAME##_add_128, KIND, BF, 128, ADD)       \
    MANY(many_##NAME##_swiglu_128, KIND, BF, 128, SWIGLU) \
    MANY(many_##NAME##_store_64, KIND, BF, 64, STORE)     \
    MANY(many_##NAME##_add_64, KIND, BF, 64, ADD)         \
    MANY(many_##NAME##_swiglu_64, KIND, BF, 64, SWIGLU)

#ifdef FEW_F16
LINEAR(f16, F16_WEIGHT, false)
ALL_TOKENS(f16_likeliest, F16_WEIGHT, false, LIKELIEST)
#endif
#ifdef FEW_4BIT
LINEAR(bit4, BIT4_WEIGHT, false)
#endif
#ifdef FEW_4BIT_BF16
LINEAR(bit4_bf16, BIT4_WEIGHT, true)
#endif
#ifdef FEW_INT8
LINEAR(int8, INT8_WEIGHT, false)
#endif
#ifdef MANY_F16
WIDE(f16, F16_WEIGHT, false)
MANY(many_f16_likeliest_128, F16_WEIGHT, false, 128, LIKELIEST)
MANY(many_f16_likeliest_64, F16_WEIGHT, false, 64, LIKELIEST)
#endif
#ifdef MANY_BF16
WIDE(bf16, F16_WEIGHT, true)
#endif
#ifdef MANY_INT8
WIDE(int8, INT8_WEIGHT, false)
#endif
