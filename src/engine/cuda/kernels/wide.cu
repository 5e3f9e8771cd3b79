// Products of many tokens on Hopper: y[token][row] = sum over k. One thread
// brings stages of 128 bytes of k to shared memory through the copy engine;
// warpgroups multiply 64 rows each from registers, where 4-bit weights are
// unpacked too. wgmma adds in the order of mma.sync, so the bits are those of
// product.cu.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define STAGES 6

DEV void barrier_init(u32 at, int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory"); }
DEV void barrier_expect(u32 at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
DEV void barrier_arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
DEV void barrier_wait(u32 at, u32 parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(at), "r"(parity) : "memory");
}
// How the copy engine walks over a matrix: the driver's CUtensorMap.
struct __align__(128) TensorMap {
    u64 opaque[16];
};
// A box from 8-byte column x and row y on; what lies outside is zeros.
DEV void copy_box(u32 to, const TensorMap& map, int x, int y, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(x), "r"(y), "r"(barrier) : "memory");
}
// Of what never changes while somebody reads it.
DEV float load_shared(u32 at) {
    float v;
    asm("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
    return v;
}
DEV uint4 load_shared16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
DEV void group_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEV void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

// B without swizzle: core matrices of 8 tokens by 16 bytes, 128 bytes apart
// along k and 1024 along the tokens.
DEV u64 descriptor(u32 at) { return (u64)(at >> 4 & 0x3fff) | (u64)(128 >> 4) << 16 | (u64)(1024 >> 4) << 32; }

#define REGS4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define REGS16(c, i) REGS4(c, i), REGS4(c, i + 4), REGS4(c, i + 8), REGS4(c, i + 12)
#define REGS32(c) REGS16(c, 0), REGS16(c, 16)
#define REGS64(c) REGS32(c), REGS16(c, 32), REGS16(c, 48)
#define D16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define D32 D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define D64 D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FREG(x) "+f"(x)
#define IREG(x) "+r"(x)
// d = a * b + d, or a * b where `add` is 0.
#define WGMMA(SHAPE, D, A0, A1, A2, A3, B, ADD, TAIL, REGS)                                                            \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\nwgmma.mma_async.sync.aligned." SHAPE " {" D "}, {%" A0 ",%" A1 \
                 ",%" A2 ",%" A3 "}, %" B ", p" TAIL ";\n}"                                                            \
                 : REGS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

template <bool BF> DEV void multiply(float (&d)[16], const u32 a[4], u64 b, int add) {
    if (BF) WGMMA("m64n32k16.f32.bf16.bf16", D16, "16", "17", "18", "19", "20", "21", ", 1, 1, 0", REGS16(FREG, 0));
    else WGMMA("m64n32k16.f32.f16.f16", D16, "16", "17", "18", "19", "20", "21", ", 1, 1, 0", REGS16(FREG, 0));
}
template <bool BF> DEV void multiply(float (&d)[32], const u32 a[4], u64 b, int add) {
    if (BF) WGMMA("m64n64k16.f32.bf16.bf16", D32, "32", "33", "34", "35", "36", "37", ", 1, 1, 0", REGS32(FREG));
    else WGMMA("m64n64k16.f32.f16.f16", D32, "32", "33", "34", "35", "36", "37", ", 1, 1, 0", REGS32(FREG));
}
template <bool BF> DEV void multiply(float (&d)[64], const u32 a[4], u64 b, int add) {
    if (BF) WGMMA("m64n128k16.f32.bf16.bf16", D64, "64", "65", "66", "67", "68", "69", ", 1, 1, 0", REGS64(FREG));
    else WGMMA("m64n128k16.f32.f16.f16", D64, "64", "65", "66", "67", "68", "69", ", 1, 1, 0", REGS64(FREG));
}
template <bool BF> DEV void multiply(int (&d)[16], const u32 a[4], u64 b, int add) {
    WGMMA("m64n32k32.s32.s8.s8", D16, "16", "17", "18", "19", "20", "21", "", REGS16(IREG, 0));
}
template <bool BF> DEV void multiply(int (&d)[32], const u32 a[4], u64 b, int add) {
    WGMMA("m64n64k32.s32.s8.s8", D32, "32", "33", "34", "35", "36", "37", "", REGS32(IREG));
}
template <bool BF> DEV void multiply(int (&d)[64], const u32 a[4], u64 b, int add) {
    WGMMA("m64n128k32.s32.s8.s8", D64, "64", "65", "66", "67", "68", "69", "", REGS64(IREG));
}

template <int KIND> struct Sum { typedef float type; };
template <> struct Sum<INT8_WEIGHT> { typedef int type; };

// WM by WN warpgroups of 64 rows by N tokens, and one of which a thread loads.
// Blocks that share rows run side by side, so that a weight comes from memory
// once.
template <int KIND, bool BF, int WM, int WN, int N, int WHAT>
DEV void wide(const TensorMap& weight_map, const TensorMap& act_map, const u8* weight, const Parts& parts, int columns,
              int tokens, const float* table, const float* map, const Scales8& scales, const Output& out) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[2][STAGES]; // a stage is full, a stage is empty
    constexpr int TILE_BYTES = KIND == BIT4_WEIGHT ? 512 : 2048, A_BYTES = 4 * WM * TILE_BYTES, TN = WN * N;
    constexpr int STAGE_BYTES = A_BYTES + TN * 128, THREADS = 128 * WM * WN;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tiles = (out.rows + 15) >> 4, tile0 = blockIdx.y * 4 * WM, token0 = blockIdx.x * TN;
    const int bytes = KIND == INT8_WEIGHT ? columns : 2 * columns; // of a row of k
    const int stages = (bytes + 127) >> 7;
    const u32 bottom = (u32)__cvta_generic_to_shared(shared);
    const u32 table_at = (bottom + 4095) & ~4095u;
    const u32 ring = KIND == BIT4_WEIGHT ? table_at + 4096 + 1024 : (bottom + 127) & ~127u;
    const u32 full = (u32)__cvta_generic_to_shared(barriers[0]), empty = full + 8 * STAGES;

    pdl_launch();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * WM * WN);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (KIND == BIT4_WEIGHT) {
        float* values = (float*)((char*)shared + (table_at - bottom));
        for (int i = threadIdx.x; i < 512; i += blockDim.x) values[(i >> 5) * 64 + (i & 31)] = table[i >> 5];
        for (int i = threadIdx.x; i < 256; i += blockDim.x) values[1024 + i] = map[i];
    }
    __syncthreads();

    // Two warpgroups of results need more registers than a third leaves them.
    constexpr bool SHIFT = WM * WN == 2;
    if (threadIdx.x >= THREADS) {
        if (SHIFT) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == THREADS) {
            auto load = [&](int stage, bool a, bool b) {
                const u32 to = ring + stage % STAGES * STAGE_BYTES, at = full + stage % STAGES * 8;
                if (a) {
                    barrier_expect(at, STAGE_BYTES);
                    copy_box(to, weight_map, stage * (TILE_BYTES / 8), tile0, at);
                }
                if (b) copy_box(to + A_BYTES, act_map, stage * (1024 / 8), token0 / 8, at);
            };
            // Weights do not wait for the kernel ahead, activations do.
            const int ahead = min(STAGES, stages);
            for (int stage = 0; stage < ahead; stage++) load(stage, true, false);
            pdl_wait();
            asm volatile("fence.proxy.async;" ::: "memory"); // what other kernels wrote, for the copies
            for (int stage = 0; stage < ahead; stage++) load(stage, false, true);
            for (int stage = STAGES; stage < stages; stage++) {
                barrier_wait(empty + stage % STAGES * 8, (stage / STAGES & 1) ^ 1);
                load(stage, true, true);
            }
        }
        return;
    }

    if (SHIFT) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    typedef typename Sum<KIND>::type sum_t;
    const int wr = (warp >> 2) % WM, wt = (warp >> 2) / WM; // this warpgroup's place
    const int tile = tile0 + wr * 4 + (warp & 3);            // this warp's rows
    sum_t acc[N / 2];
    float total[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) acc[i] = 0, total[i] = 0.0f;

    // Absmax values of rows g and g + 8: lane t looks after chunk t of a segment.
    // What is decoded at the next segment is loaded at this one.
    const int chunks = columns >> 6;
    const bool coded = KIND == BIT4_WEIGHT && !parts.part[0].plain;
    float scale[2] = {0.0f, 0.0f}, next[2] = {0.0f, 0.0f}, offset[2] = {0.0f, 0.0f};
    int code[2] = {0, 0};
    auto load_scales = [&](int segment) {
        const int chunk = segment * 4 + t;
        if (chunk >= chunks || tile >= tiles) return;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            Place place = place_of(parts, tile * 2 + h);
            const Part& part = parts.part[place.part];
            i64 block = ((i64)(place.row + g) * columns + chunk * 64) >> parts.block_shift;
            next[h] = coded ? part.nested[block >> 8] : part.plain[block];
            if (coded) code[h] = part.codes[block], offset[h] = *part.offset;
        }
    };
    auto next_scales = [&](int segment) {
#pragma unroll
        for (int h = 0; h < 2; h++)
            scale[h] = coded ? __fadd_rn(__fmul_rn(load_shared(table_at + 4096 + 4 * code[h]), next[h]), offset[h]) : next[h];
        load_scales(segment + 1);
    };
    if (KIND == BIT4_WEIGHT) load_scales(0);

    pdl_wait();
    constexpr bool SEGMENTS = KIND != INT8_WEIGHT; // sums that begin from zero
    u32 a[2][4][4];                                // stages in turns
    // What a stage holds of this warp's rows, to registers.
    auto unpack = [&](int stage, u32 (&a)[4][4]) {
        const u32 mine = ring + stage % STAGES * STAGE_BYTES + (wr * 4 + (warp & 3)) * TILE_BYTES + lane * 16;
        barrier_wait(full + stage % STAGES * 8, stage / STAGES & 1);
        if (KIND == BIT4_WEIGHT) {
            const float s0 = __shfl_sync(FULL, scale[0], (lane & 28) | (stage & 3));
            const float s1 = __shfl_sync(FULL, scale[1], (lane & 28) | (stage & 3));
            const u32 here = (table_at >> 8) * 0x01010101u;
            const uint4 v = load_shared16(mine);
            const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const u32 low = word[m] & 0x0f0f0f0f | here, high = word[m] >> 4 & 0x0f0f0f0f | here;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    float v0 = load_shared(__byte_perm(low, lane * 4, 0x5504 | r << 4));
                    float v1 = load_shared(__byte_perm(high, lane * 4, 0x5504 | r << 4));
                    float s = r & 1 ? s1 : s0;
                    a[m][r] = pack2<BF>(__fmul_rn(v0, s), __fmul_rn(v1, s));
                }
            }
        } else {
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const uint4 v = load_shared16(mine + m * 512);
                a[m][0] = v.x, a[m][1] = v.y, a[m][2] = v.z, a[m][3] = v.w;
            }
        }
    };
    auto product = [&](int stage, const u32 (&a)[4][4], bool fresh, bool full) {
        const u64 b = descriptor(ring + stage % STAGES * STAGE_BYTES + A_BYTES + wt * N * 128);
        group_arrive();
#pragma unroll
        for (int m = 0; m < 4; m++)
            // Only int8 has half stages.
            if (full || m < 2 || bytes - stage * 128 >= 128) multiply<BF>(acc, a[m], b + m * (256 >> 4), m > 0 || !fresh);
        group_commit();
    };
    auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(empty + stage % STAGES * 8);
    };
    // Whole segments of 4 stages; int8 sums go on from one to the next.
    const int whole = bytes >> 9 << 2;
    for (int stage = 0; stage < whole; stage += 4) {
        if (KIND == BIT4_WEIGHT) next_scales(stage >> 2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unpack(stage + i, a[i & 1]);
            product(stage + i, a[i & 1], i == 0 && (SEGMENTS || stage == 0), true);
            if (i == 3 && SEGMENTS) group_wait<0>();
            else group_wait<1>();
            if (i > 0) release(stage + i - 1);
            else if (!SEGMENTS && stage > 0) release(stage - 1);
        }
        if (SEGMENTS) {
            release(stage + 3);
#pragma unroll
            for (int i = 0; i < N / 2; i++) total[i] = __fadd_rn(total[i], acc[i]);
        }
    }
    if (!SEGMENTS) {
        group_wait<0>();
        if (whole > 0) release(whole - 1);
    }
    if (whole < stages) {
        if (KIND == BIT4_WEIGHT) next_scales(whole >> 2);
        for (int stage = whole; stage < stages; stage++) {
            unpack(stage, a[0]);
            product(stage, a[0], stage == whole && (SEGMENTS || stage == 0), SEGMENTS);
            group_wait<0>();
            release(stage);
        }
        if (SEGMENTS)
#pragma unroll
            for (int i = 0; i < N / 2; i++) total[i] = __fadd_rn(total[i], acc[i]);
    }
    if (tile >= tiles) return;
#pragma unroll
    for (int part = 0; part < N / 8; part += 4) {
        float before[4][2][2];
#pragma unroll
        for (int i = 0; i < 8; i++)
            load_before<WHAT>(before[i / 2][i & 1], token0 + wt * N + (part + i / 2) * 8 + 2 * t + (i & 1), tokens, tile, g, out);
#pragma unroll
        for (int n = part; n < part + 4; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) { // tokens 2t and 2t + 1
                const int token = token0 + wt * N + n * 8 + 2 * t + j;
                float y[2];
#pragma unroll
                for (int h = 0; h < 2; h++) { // rows g and g + 8
                    const int row = tile * 16 + g + 8 * h, i = n * 4 + 2 * h + j;
                    const bool real = token < tokens && row < out.rows;
                    y[h] = total[i];
                    if (KIND == INT8_WEIGHT) y[h] = real ? result8(acc[i], row, token, scales, weight, columns) : 0.0f;
                }
                finish_pair<WHAT>(y, before[n - part][j], token, tokens, tile, g, out);
            }
    }
}

#define WIDE(NAME, KIND, BF, WM, WN, N, WHAT)                                                                          \
    extern "C" __global__ void __launch_bounds__(128 * WM * WN + 128, 1)                                                \
        NAME(const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap act_map,                  \
             const u8* weight, Parts parts, int columns, int tokens, const float* table, const float* map,             \
             Scales8 scales, Output out) {                                                                             \
        wide<KIND, BF, WM, WN, N, WHAT>(weight_map, act_map, weight, parts, columns, tokens, table, map, scales, out); \
    }
#define SHAPES(NAME, KIND, BF, WHAT)                    \
    WIDE(wide_##NAME##_32, KIND, BF, 1, 1, 32, WHAT)    \
    WIDE(wide_##NAME##_64, KIND, BF, 1, 1, 64, WHAT)    \
    WIDE(wide_##NAME##_128, KIND, BF, 1, 2, 64, WHAT)   \
    WIDE(wide_##NAME##_128_128, KIND, BF, 2, 1, 128, WHAT)
#define ALL(NAME, KIND, BF)               \
    SHAPES(NAME##_store, KIND, BF, STORE) \
    SHAPES(NAME##_add, KIND, BF, ADD)     \
    SHAPES(NAME##_swiglu, KIND, BF, SWIGLU)

#ifdef WIDE_F16
ALL(f16, F16_WEIGHT, false)
SHAPES(f16_likeliest, F16_WEIGHT, false, LIKELIEST)
#endif
#ifdef WIDE_4BIT
ALL(bit4, BIT4_WEIGHT, false)
#endif
#ifdef WIDE_4BIT_BF16
ALL(bit4_bf16, BIT4_WEIGHT, true)
#endif
#ifdef WIDE_INT8
ALL(int8, INT8_WEIGHT, false)
#endif
#endif
