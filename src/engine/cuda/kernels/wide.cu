// Products of many tokens on Hopper: y[token][row] = sum over k. One thread
// brings stages of 128 bytes of k to shared memory through the copy engine;
// warpgroups multiply 64 rows each from registers, where 4-bit weights are
// unpacked too. wgmma adds in the order of mma.sync, so the bits are those of
// product.cu.
//
// Where there are too few blocks for the card, the blocks of a cluster share the
// segments of k. A segment's sums go to the shared memory of the block that
// finishes those outputs, which then adds all segments in their order.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define MOST_STAGES 12

DEV void barrier_arrive(u32 at) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory"); }
// How the copy engine walks over a matrix: the driver's CUtensorMap.
struct __align__(128) TensorMap {
    u64 opaque[16];
};
// A box from 8-byte column x and row y on; what lies outside is zeros.
DEV void copy_box(u32 to, const TensorMap& map, int x, int y, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
                 "l"(&map), "r"(x), "r"(y), "r"(barrier) : "memory");
}
DEV void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
// --- clusters: where another block has what lies at `at` here; four numbers to
// there; all threads of all blocks meet, and what they wrote is seen.
DEV u32 place_in(u32 at, int block) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(block));
    return there;
}
DEV void store_there(u32 at, float a, float b, float c, float d) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
}
DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
DEV void group_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEV void group_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

// B without swizzle: core matrices of 8 tokens by 16 bytes, 128 bytes apart
// along k and 1024 along the tokens.
DEV u64 descriptor(u32 at) { return (u64)(at >> 4 & 0x3fff) | (u64)(128 >> 4) << 16 | (u64)(1024 >> 4) << 32; }

#define REGS4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define REGS8(c) REGS4(c, 0), REGS4(c, 4)
#define REGS16(c, i) REGS4(c, i), REGS4(c, i + 4), REGS4(c, i + 8), REGS4(c, i + 12)
#define REGS32(c) REGS16(c, 0), REGS16(c, 16)
#define REGS64(c) REGS32(c), REGS16(c, 32), REGS16(c, 48)
#define D8 "%0,%1,%2,%3,%4,%5,%6,%7"
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

template <bool BF> DEV void multiply(float (&d)[8], const u32 a[4], u64 b, int add) {
    if (BF) WGMMA("m64n16k16.f32.bf16.bf16", D8, "8", "9", "10", "11", "12", "13", ", 1, 1, 0", REGS8(FREG));
    else WGMMA("m64n16k16.f32.f16.f16", D8, "8", "9", "10", "11", "12", "13", ", 1, 1, 0", REGS8(FREG));
}
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
template <bool BF> DEV void multiply(int (&d)[8], const u32 a[4], u64 b, int add) {
    WGMMA("m64n16k32.s32.s8.s8", D8, "8", "9", "10", "11", "12", "13", "", REGS8(IREG));
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
DEV float bits_of(float sum) { return sum; }
DEV float bits_of(int sum) { return __int_as_float(sum); }

// LLM.int8: of 8 tokens, those of a thread.
struct Tokens8 {
    float absmax[2];
    int outliers[2];
};
DEV void load_tokens8(Tokens8& to, int token, int tokens, const Scales8& scales) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        to.absmax[j] = token + j < tokens ? scales.token_absmax[token + j] : 0.0f;
        to.outliers[j] = token + j < tokens ? scales.outlier_count[token + j] : 0;
    }
}

// A warp's sums of one set to the blocks that finish them: units `unit`, `unit +
// step` and so on, of which each block has a power of two. alone: no cluster.
template <int NUMBERS, class SUM>
DEV void give(const SUM (&sum)[NUMBERS], u32 sums, int set, int unit, int step, int own_log2, int lane, bool alone) {
#pragma unroll
    for (int n = 0; n < NUMBERS; n += 4, unit += step) {
        const int theirs = (set << own_log2) + (unit & ((1 << own_log2) - 1));
        const u32 at = sums + (theirs * 32 + lane) * 16;
        store_there(alone ? at : place_in(at, unit >> own_log2), bits_of(sum[n]), bits_of(sum[n + 1]), bits_of(sum[n + 2]), bits_of(sum[n + 3]));
    }
}

// How many warps a block has beside those that multiply. Two warpgroups with
// many results need more registers than others leave them, and registers move
// by whole warpgroups.
template <int WM, int WN, int N> struct Loaders { enum { SHIFT = WM * WN == 2 && WN * N > 64, WARPS = SHIFT ? 4 : 1 }; };

// WM by WN warpgroups of 64 rows by N tokens, and one thread that loads. A block
// of 64 tokens or more takes one tile of so many rows and tokens after the other,
// and the next one's stages are on their way while it finishes one. Tiles that
// share rows run side by side, so that a weight comes from memory once. gridDim.z
// blocks are a cluster, of one tile; `depth` stages are on their way.
template <int KIND, bool BF, int WM, int WN, int N, int WHAT>
DEV void wide(const TensorMap& weight_map, const TensorMap& act_map, const u8* weight, const Parts& parts, int columns,
              int tokens, int depth, const float* table, const float* map, const Scales8& scales, const Output& out) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[2][MOST_STAGES]; // a stage is full, a stage is empty
    constexpr int TILE_BYTES = KIND == BIT4_WEIGHT ? 512 : 2048, A_BYTES = 4 * WM * TILE_BYTES, TN = WN * N;
    constexpr int STAGE_BYTES = A_BYTES + TN * 128, WARPS = 4 * WM * WN, THREADS = 32 * WARPS;
    constexpr bool LOOP = TN >= 64; // registers do not suffice where two blocks share a multiprocessor
    constexpr int PER_SEGMENT = KIND == INT8_WEIGHT ? 2 : 4; // stages
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int tiles = (out.rows + 15) >> 4, across = (tokens + TN - 1) / TN, all = across * ((tiles + 4 * WM - 1) / (4 * WM));
    const int bytes = KIND == INT8_WEIGHT ? columns : 2 * columns; // of a row of k
    const int stages = (bytes + 127) >> 7, segments = (stages + PER_SEGMENT - 1) / PER_SEGMENT;
    // Whole segments of this block; there are no fewer than blocks of a cluster.
    const int blocks = gridDim.z, rank = blockIdx.z;
    const int first = segments * rank / blocks * PER_SEGMENT, last = min(segments * (rank + 1) / blocks * PER_SEGMENT, stages);
    const u32 bottom = (u32)__cvta_generic_to_shared(shared);
    // [pairs of 4-bit values, the dynamic map,] stages, sums
    // Addresses have the block's place in its cluster in their highest byte.
    const u32 zero = bottom & 0xff000000;
    if (KIND == BIT4_WEIGHT && bottom - zero > TABLE_AT) __trap();
    constexpr bool LARGE = TN >= 64; // the table, where one block has a multiprocessor
    constexpr int MAPS_AT = TABLE_AT + (LARGE ? LARGE_TABLE_BYTES : TABLE_BYTES);
    const u32 ring = KIND == BIT4_WEIGHT ? zero + MAPS_AT + 1024 : (bottom + 127) & ~127u;
    const u32 sums = ring + depth * STAGE_BYTES;
    const u32 full = (u32)__cvta_generic_to_shared(barriers[0]), empty = full + 8 * MOST_STAGES;
    float* maps = (float*)((char*)shared + (zero + MAPS_AT - bottom));

    auto load = [&](int block, int stage, int slot, bool a, bool b) {
        const u32 to = ring + slot * STAGE_BYTES, at = full + slot * 8;
        if (a) {
            barrier_expect(at, STAGE_BYTES);
            copy_box(to, weight_map, stage * (TILE_BYTES / 8), block / across * 4 * WM, at);
        }
        if (b) copy_box(to + A_BYTES, act_map, stage * (1024 / 8), block % across * (TN / 8), at);
    };
    pdl_launch();
    const int ahead = min(depth, last - first);
    if (threadIdx.x == THREADS) {
        for (int i = 0; i < depth; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, WARPS);
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
        // Weights do not wait for the kernel ahead, activations do.
        for (int i = 0; i < ahead; i++) load(blockIdx.x, first + i, i, true, false);
        prefetch(act_map);
    } else if (KIND == BIT4_WEIGHT && threadIdx.x < THREADS) {
        char* const pairs = (char*)shared + (zero + TABLE_AT - bottom);
        if (LARGE) fill_large<BF>((u32*)pairs, table, THREADS);
        else fill_pairs<BF>((uint4*)pairs, table, THREADS);
        for (int i = threadIdx.x; i < 256; i += THREADS) maps[i] = map[i];
    }
    __syncwarp();
    if (blocks > 1) cluster_arrive(); // who is here may be written to
    __syncthreads();

    constexpr bool SHIFT = Loaders<WM, WN, N>::SHIFT;
    if (threadIdx.x >= THREADS) {
        if (SHIFT) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == THREADS) {
            pdl_wait();
            asm volatile("fence.proxy.async;" ::: "memory"); // what other kernels wrote, for the copies
            for (int i = 0; i < ahead; i++) load(blockIdx.x, first + i, i, false, true);
            int slot = ahead == depth ? 0 : ahead, parity = ahead == depth ? 0 : 1;
            for (int block = blockIdx.x, stage = first + ahead; block < all; block = LOOP ? block + (int)gridDim.x : all, stage = first)
                for (; stage < last; stage++) {
                    barrier_wait(empty + slot * 8, parity);
                    load(block, stage, slot, true, true);
                    if (++slot == depth) slot = 0, parity ^= 1;
                }
        }
        __syncwarp();
        if (blocks > 1) cluster_wait(), cluster_arrive(), cluster_wait();
        return;
    }

    if (SHIFT) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    typedef typename Sum<KIND>::type sum_t;
    const int wr = (warp >> 2) % WM, wt = (warp >> 2) / WM; // this warpgroup's place
    sum_t acc[N / 2];
    float total[N / 2];

    // Absmax values of rows g and g + 8: lane t looks after chunk t of a segment.
    // What is decoded at the next segment is loaded at this one.
    const int chunks = columns >> 6;
    const bool coded = KIND == BIT4_WEIGHT && !parts.part[0].plain;
    const float inverse = KIND == BIT4_WEIGHT ? __fdiv_rn(1.0f, factor_of<BF>(table)) : 1.0f;
    float next[2] = {0.0f, 0.0f}, offset[2] = {0.0f, 0.0f};
    u32 scale[2] = {0, 0};
    int code[2] = {0, 0};
    auto load_scales = [&](int block, int segment) {
        const int chunk = segment * 4 + t, tile = block / across * 4 * WM + wr * 4 + (warp & 3);
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
    auto next_scales = [&](int block, int segment) {
#pragma unroll
        for (int h = 0; h < 2; h++)
            scale[h] = scale_bits<BF>(coded ? __fadd_rn(__fmul_rn(maps[code[h]], next[h]), offset[h]) : next[h], inverse);
        if ((segment + 1) * 4 < last) load_scales(block, segment + 1);
        else if (LOOP && block + (int)gridDim.x < all) load_scales(block + gridDim.x, first >> 2);
    };
    if (KIND == BIT4_WEIGHT) load_scales(blockIdx.x, first >> 2);

    // The outputs in units of a warp, by groups of 8 tokens, then by tiles. Each
    // block of a cluster finishes as many, and holds their sums of all segments:
    // those of the first block's in one, for it begins, then each of the others'.
    constexpr int UNITS = TN / 8 * 4 * WM;
    const int own = UNITS / blocks, own_log2 = 31 - __clz(own), alone = segments / blocks;
    const int unit0 = wt * (N / 8) * 4 * WM + wr * 4 + (warp & 3); // this warp's first one

    pdl_wait();
    if (blocks > 1) cluster_wait();
    constexpr bool SEGMENTS = KIND != INT8_WEIGHT; // sums that begin from zero
    // A stage with little to multiply is free again before the next has come;
    // else the next is unpacked meanwhile.
    constexpr bool AT_ONCE = KIND != BIT4_WEIGHT && TN <= 64;
    u32 a[2][4][4]; // stages in turns
    int slot = 0, before_slot = -1, parity = 0;
    // What a stage holds of this warp's rows, to registers.
    auto unpack = [&](int stage, u32 (&a)[4][4]) {
        const u32 mine = ring + slot * STAGE_BYTES + (wr * 4 + (warp & 3)) * TILE_BYTES + lane * 16;
        barrier_wait(full + slot * 8, parity);
        if (KIND == BIT4_WEIGHT) {
            Scale<BF> s[2];
#pragma unroll
            for (int h = 0; h < 2; h++) take_scale(s[h], __shfl_sync(FULL, scale[h], (lane & 28) | (stage & 3)));
            const u32 replica = (LARGE ? lane * (BF ? 8 : 4) : replica_of<BF>(lane)) | zero;
            const uint4 v = load_shared16(mine);
            const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int m = 0; m < 4; m++)
#pragma unroll
                for (int r = 0; r < 4; r++) a[m][r] = weights_of(LARGE ? table_at(word[m], r, replica) : byte_times_128(word[m], r) | replica, s[r & 1]);
        } else {
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const uint4 v = load_shared16(mine + m * 512);
                a[m][0] = v.x, a[m][1] = v.y, a[m][2] = v.z, a[m][3] = v.w;
            }
        }
    };
    auto product = [&](int stage, const u32 (&a)[4][4], bool fresh, bool full) {
        const u64 b = descriptor(ring + slot * STAGE_BYTES + A_BYTES + wt * N * 128);
        group_arrive();
#pragma unroll
        for (int m = 0; m < 4; m++)
            // Only int8 has half stages.
            if (full || m < 2 || bytes - stage * 128 >= 128) multiply<BF>(acc, a[m], b + m * (256 >> 4), m > 0 || !fresh);
        group_commit();
    };
    auto release = [&](int slot) {
        if (lane == 0) barrier_arrive(empty + slot * 8);
    };
    auto advance = [&] {
        before_slot = slot;
        if (++slot == depth) slot = 0, parity ^= 1;
    };
    // The first block of a cluster, or the only one, has the beginning of the sum.
    auto end_segment = [&](int stage) {
        if (!SEGMENTS) return;
        if (rank == 0) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) total[i] = __fadd_rn(total[i], acc[i]);
        } else {
            give(acc, sums, 1 + stage / PER_SEGMENT - alone, unit0, 4 * WM, own_log2, lane, false);
        }
    };
    auto meet = [&] { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }; // all that multiply
    // Whole segments of 4 stages; int8 sums go on from one to the next.
    const int whole = first + ((min(last, bytes >> 7) - first) & ~3);
#pragma unroll 1
    for (int block = blockIdx.x; block < all; block = LOOP ? block + (int)gridDim.x : all) {
        const int tile0 = block / across * 4 * WM, token0 = block % across * TN;
        const int tile = tile0 + wr * 4 + (warp & 3); // this warp's rows
#pragma unroll
        for (int i = 0; i < N / 2; i++) acc[i] = 0, total[i] = 0.0f;
        for (int stage = first; stage < whole; stage += 4) {
            if (KIND == BIT4_WEIGHT) next_scales(block, stage >> 2);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32(&now)[4][4] = a[AT_ONCE ? 0 : i & 1];
                unpack(stage + i, now);
                product(stage + i, now, i == 0 && (SEGMENTS || stage == first), true);
                if (AT_ONCE || i == 3 && SEGMENTS) group_wait<0>();
                else group_wait<1>();
                if (!AT_ONCE && (i > 0 || !SEGMENTS && stage > first)) release(before_slot);
                if (AT_ONCE || i == 3 && SEGMENTS) release(slot);
                advance();
            }
            end_segment(stage);
        }
        if (!AT_ONCE && !SEGMENTS) {
            group_wait<0>();
            if (whole > first) release(before_slot);
        }
        if (whole < last) {
            if (KIND == BIT4_WEIGHT) next_scales(block, whole >> 2);
            for (int stage = whole; stage < last; stage++) {
                unpack(stage, a[0]);
                product(stage, a[0], stage == whole && (SEGMENTS || stage == first), SEGMENTS);
                group_wait<0>();
                release(slot);
                advance();
            }
            end_segment(whole);
        }

        // Sums of rows g and g + 8 of `tile` and of tokens `token` and the next one.
        auto results = [&](float (&y)[2][2], const sum_t (&sum)[4], const float (&added)[4], int tile, int token, const float (&absmax)[2],
                           const Tokens8& of) {
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int row = tile * 16 + g + 8 * h;
                    const bool real = token + j < tokens && row < out.rows;
                    y[j][h] = added[2 * h + j];
                    if (KIND == INT8_WEIGHT)
                        y[j][h] = real ? result8((int)sum[2 * h + j], row, absmax[h], token + j, of.absmax[j], of.outliers[j], scales, weight, columns) : 0.0f;
                }
        };
        auto load_rows8 = [&](float (&absmax)[2], int tile) {
#pragma unroll
            for (int h = 0; h < 2; h++)
                absmax[h] = KIND == INT8_WEIGHT && tile * 16 + g + 8 * h < out.rows ? scales.row_absmax[tile * 16 + g + 8 * h] : 0.0f;
        };

        // Through shared memory go the sums of a cluster, and integers even if they
        // are complete: what becomes of one is much code, and a loop has it once.
        if (blocks > 1 || !SEGMENTS) {
            if (blocks == 1) meet(); // all have read the sums of the tile before
            if (!SEGMENTS) give(acc, sums, rank, unit0, 4 * WM, own_log2, lane, blocks == 1);
            else if (rank == 0) give(total, sums, 0, unit0, 4 * WM, own_log2, lane, false);
            if (blocks > 1) cluster_arrive();
            const int sets = SEGMENTS ? 1 + segments - alone : blocks;
            // What a unit needs beside its sums is loaded one unit ahead.
            struct Beside {
                float before[2][2], absmax[2];
                Tokens8 of;
            } beside;
            auto tile_of = [&](int i) { return tile0 + (rank * own + i) % (4 * WM); };
            auto token_of = [&](int i) { return token0 + (rank * own + i) / (4 * WM) * 8 + 2 * t; };
            auto load_beside = [&](int i) {
                const int tile = tile_of(i), token = token_of(i);
#pragma unroll
                for (int j = 0; j < 2; j++) load_before<WHAT>(beside.before[j], token + j, tokens, tile, g, out);
                load_rows8(beside.absmax, tile);
                if (KIND == INT8_WEIGHT) load_tokens8(beside.of, token, tokens, scales);
            };
            if (warp < own) load_beside(warp);
            if (blocks > 1) cluster_wait();
            else meet();
#pragma unroll 1
            for (int i = warp; i < own; i += WARPS) {
                const Beside now = beside;
                if (i + WARPS < own) load_beside(i + WARPS);
                const int tile = tile_of(i), token = token_of(i);
                if (tile >= tiles) continue; // the same for the whole warp
                sum_t sum[4] = {0, 0, 0, 0};
                float added[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
                for (int set = 0; set < sets; set++) {
                    const uint4 v = load_shared16(sums + ((set << own_log2) + i) * 512 + lane * 16);
                    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        if (SEGMENTS) added[k] = __fadd_rn(added[k], __uint_as_float(word[k]));
                        else sum[k] += (int)word[k];
                    }
                }
                float y[2][2];
                results(y, sum, added, tile, token, now.absmax, now.of);
#pragma unroll
                for (int j = 0; j < 2; j++) finish_and_offer<WHAT>(y[j], now.before[j], token + j, tokens, tile, g, out);
            }
            continue;
        }

        // LIKELIEST: the best of each warp, to ask memory once for each token.
        u64* ranks = (u64*)((char*)shared + (sums - bottom)); // [warps of rows][TN]
        if (tile < tiles) {
            constexpr int AHEAD = N < 32 ? N / 8 : 4; // groups of tokens whose residuals are loaded at once
#pragma unroll
            for (int part = 0; part < N / 8; part += AHEAD) {
                float before[AHEAD][2][2];
#pragma unroll
                for (int i = 0; i < 2 * AHEAD; i++)
                    load_before<WHAT>(before[i / 2][i & 1], token0 + wt * N + (part + i / 2) * 8 + 2 * t + (i & 1), tokens, tile, g, out);
#pragma unroll
                for (int n = part; n < part + AHEAD; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) { // tokens 2t and 2t + 1
                        const int at = wt * N + n * 8 + 2 * t + j;
                        const float y[2] = {total[n * 4 + j], total[n * 4 + 2 + j]}; // rows g and g + 8
                        u64 best = finish_pair<WHAT>(y, before[n - part][j], token0 + at, tokens, tile, g, out);
                        if (WHAT == LIKELIEST && g == 0) ranks[(wr * 4 + (warp & 3)) * TN + at] = best;
                    }
            }
        }
        if (WHAT != LIKELIEST) continue;
        meet();
        const int there = min(4 * WM, tiles - tile0);
        for (int i = threadIdx.x; i < TN && token0 + i < tokens; i += THREADS) {
            u64 best = 0;
            for (int w = 0; w < there; w++) best = larger(best, ranks[w * TN + i]);
            atomicMax(out.best + token0 + i, best);
        }
        meet(); // the next tile's may be written
    }
}

#define WIDE(NAME, KIND, BF, WM, WN, N, RESIDENT, WHAT)                                                                \
    extern "C" __global__ void __launch_bounds__(32 * (4 * WM * WN + Loaders<WM, WN, N>::WARPS), RESIDENT)              \
        NAME(const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap act_map,                  \
             const u8* weight, Parts parts, int columns, int tokens, int depth, const float* table, const float* map,  \
             Scales8 scales, Output out) {                                                                             \
        wide<KIND, BF, WM, WN, N, WHAT>(weight_map, act_map, weight, parts, columns, tokens, depth, table, map,        \
                                        scales, out);                                                                  \
    }
// Two blocks of a product, or one and one of the next, share a multiprocessor
// where that costs no spills.
#define SHAPES(NAME, KIND, BF, WHAT)                          \
    WIDE(wide_##NAME##_16, KIND, BF, 2, 1, 16, 2, WHAT)       \
    WIDE(wide_##NAME##_32, KIND, BF, 2, 1, 32, 2 - BF, WHAT)  \
    WIDE(wide_##NAME##_64, KIND, BF, 2, 1, 64, 1, WHAT)       \
    WIDE(wide_##NAME##_128, KIND, BF, 1, 2, 64, 1, WHAT)      \
    WIDE(wide_##NAME##_128_128, KIND, BF, 2, 1, 128, 1, WHAT)
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
