// A whole decode step of a few tokens in one kernel: one block a
// multiprocessor, all of them running at once, walks through every layer.
//
// A warp of its own streams packed weights through shared memory by the copy
// engine. It knows the order of all weights and waits for nothing but room, so
// memory keeps working while the other warps wait for each other.
//
// Activations go from block to block through mailboxes in the cache that all
// share: words of 8 bytes, a number and a tag that says to which layer of which
// step it belongs. Who needs a number reads until the tag is right, so that a
// hand-over costs one trip through the cache and no barrier. A mailbox is
// written again only after two later hand-overs, each of which needed what all
// its readers had made of it.
//
// Sums run in the order that common.cuh states.
#if __CUDA_ARCH__ >= 900

#define WARPS 16 // that multiply; one more loads
#define CONSUMERS (32 * WARPS)
#define PAD 20       // floats a token takes in sums: 16 rows, spread over the banks
#define SLOT 8192    // bytes of weights of a slot of the ring
#define SCALES 1024  // bytes after them: 4-bit weights' absmax values
#define MOST_SLOTS 24

// One product of a layer, or the head.
struct Phase {
    const u8* weight;
    const float* norm;       // [columns], or null
    const float* row_absmax; // INT8: [packed rows]
    u64 unused;
    Parts parts; // 4-bit
};
#define PHASE_WORDS 32 // of 8 bytes that a phase takes in the list of all
// What the warps that multiply need of a phase: all are in shared memory, since
// a look at the list would keep them waiting.
struct Pointers {
    const u8* weight;
    const float* norm;
    const float* row_absmax;
};

struct Step {
    const u64* phases; // [4 * layers + 1][PHASE_WORDS]
    const u16* embedding;
    u32* tokens; // of this step; at the end of the next one, as positions
    const int* slots;
    int* positions;
    u32* chosen; // memory of the host
    u16* keys;   // [layers][slot][kv head][position][head_dim]
    u16* values;
    const float* cosines;
    const float* sines;
    const float* table; // 4-bit: 16 values
    const float* map;   // and 256 of the absmax codes
    // Mailboxes, [tokens][columns], or pairs of 16-bit columns.
    u64* qkv;
    u64* attended;
    u64* after_attention; // the residual stream
    u64* act;
    u64* after_layer; // the residual stream
    u64* best;        // [tokens]
    u32* counters;    // steps so far, blocks that have ended
    u64* timeline;    // null, or [block][phase][4] nanoseconds: begun, input there, products done, all done
    i64 layer_stride; // numbers of a layer's keys
    int batch, layers, hidden, intermediate, q_width, heads, kv_heads, vocab, context;
    int ring_slots, together; // chunks of the cache in shared memory at a time
    int sums_floats;          // of one of two buffers
    int plain;                // 4-bit: absmax values are not quantised
    // Bytes from the ring's end on: activations are followed by sums; a chunk's
    // keys and values take the place of both.
    int act_bytes, room_bytes, own_bytes;
    float eps, scale, threshold;
};

// --- what a slot holds of a tile: units of 256 columns
template <int KIND> struct Unit { enum { BYTES = KIND == F16_WEIGHT ? 8192 : KIND == INT8_WEIGHT ? 4096 : 2048, COUNT = SLOT / BYTES }; };

DEV void barrier_init(u32 at, int count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory"); }
DEV void barrier_expect(u32 at, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
DEV void barrier_arrive(u32 at, int count) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(count) : "memory"); }
// Arrives when the thread's copies so far have.
DEV void barrier_arrive_copied(u32 at) { asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory"); }
DEV void barrier_wait(u32 at, u32 parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(at), "r"(parity) : "memory");
}
DEV void copy_bulk(u32 to, const void* from, int bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
DEV void copy4(u32 to, const void* global) { asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(global) : "memory"); }
DEV void copy16_to(u32 to, const void* global) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory"); }
DEV void barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEV void consumers() {
    __syncwarp();
    barrier(1, CONSUMERS);
}
DEV u32 load_shared(u32 at) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}
DEV u32 load_shared1(u32 at) {
    u32 v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at));
    return v;
}
DEV uint4 load_shared16(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}
// --- mailboxes
DEV void send(u64* to, u32 bits, u32 tag) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((u64)tag << 32 | bits) : "memory");
}
DEV u64 look(const u64* from) {
    u64 v;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
    return v;
}
// Numbers first, first + step, ... below `count`, as soon as all have `tag`.
template <int N> DEV void receive(u32 (&bits)[N], const u64* from, int first, int step, int count, u32 tag) {
    bool all;
    do {
        u64 word[N];
        all = true;
#pragma unroll
        for (int n = 0; n < N; n++) word[n] = first + n * step < count ? look(from + first + n * step) : (u64)tag << 32;
#pragma unroll
        for (int n = 0; n < N; n++) all &= (u32)(word[n] >> 32) == tag, bits[n] = (u32)word[n];
    } while (!all);
}

// Activations in the order of B fragments: 16 bytes hold what a lane needs for
// two mma. In 16-bit numbers, and in bytes for int8.
DEV int fragment16(int token, int k, int tokens) {
    int kk = k & 15;
    return (((k >> 5) * tokens + token) * 4 + ((kk & 7) >> 1)) * 8 + (k >> 4 & 1) * 4 + (kk >> 3) * 2 + (kk & 1);
}
DEV int fragment8(int token, int k, int tokens) {
    int kk = k & 31;
    return (((k >> 6) * tokens + token) * 4 + ((kk & 15) >> 2)) * 16 + (k >> 5 & 1) * 8 + (kk >> 4) * 4 + (kk & 3);
}

// Shared memory of the warps that multiply, by address; what lies where follows
// from the step.
__shared__ float scratch[2][16];
__shared__ float token_absmax[8]; // INT8
__shared__ int outlier_count[8];
struct Room {
    char* at;
    // 16-bit activations; INT8: [tokens][k] FP16, then codes, then columns of outliers.
    __device__ __forceinline__ u16* act() const { return (u16*)at; }
    __device__ __forceinline__ static int widest(const Step& s) { return max(s.hidden, max(s.intermediate, s.q_width)); }
    __device__ __forceinline__ u8* codes(const Step& s) const { return (u8*)(at + 2 * s.batch * widest(s)); }
    __device__ __forceinline__ u16* outliers(const Step& s) const { return (u16*)(at + 3 * s.batch * widest(s)); }
    __device__ __forceinline__ float* sums(const Step& s, int which) const { return (float*)(at + s.act_bytes) + which * s.sums_floats; }
    // Rows of the residual stream: [tile of this block][token][16].
    __device__ __forceinline__ float* own(const Step& s) const { return (float*)(at + s.room_bytes); }
};

// What a product's input is: the residual stream and its norm, or 16-bit numbers.
#define FROM_TABLE 0
#define FROM_RESIDUAL 1
#define FROM_PAIRS 2

// Half of the warps bring one token to shared memory, normed or quantised.
// 256 threads; `norm` holds the thread's first weights.
template <int KIND, bool BF>
DEV void bring(const Step& s, int source, const u64* mail, u32 tag, const float* weight, const float (&norm)[8], int columns,
               int token, const Room& room, int thread, int half) {
    const int warp = thread >> 5, lane = thread & 31, tokens = s.batch;
    float* scratch = ::scratch[half];
    const int id = 2 + half;
    auto put = [&](int k, u16 bits) {
        if (KIND == INT8_WEIGHT) room.act()[token * columns + k] = bits;
        else room.act()[fragment16(token, k, tokens)] = bits;
    };
    barrier(id, 256); // the token before has left `scratch`
    if (source != FROM_PAIRS) {
        // As rms_norm does, to the bit.
        const u64* from = mail + (i64)token * columns;
        u32 bits[8];
        auto fetch = [&](int base) {
            if (source == FROM_TABLE) {
                const int id = (int)s.tokens[token];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int k = base + thread + i * 256;
                    bits[i] = k < columns ? __float_as_uint(half_to_float(s.embedding[at_f16(id, k, columns)])) : 0u;
                }
            } else {
                receive<8>(bits, from, base + thread, 256, columns, tag);
            }
        };
        float sum = 0.0f;
#pragma unroll 1
        for (int base = 0; base < columns; base += 2048) {
            fetch(base);
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (base + thread + i * 256 < columns) sum = __fmaf_rn(__uint_as_float(bits[i]), __uint_as_float(bits[i]), sum);
        }
        for (int d = 16; d; d >>= 1) sum = __fadd_rn(sum, __shfl_xor_sync(FULL, sum, d));
        if (lane == 0) scratch[warp] = sum;
        barrier(id, 256);
        sum = 0.0f;
        for (int i = 0; i < 8; i++) sum = __fadd_rn(sum, scratch[i]);
        const float scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)columns), s.eps)));
#pragma unroll 1
        for (int base = 0; base < columns; base += 2048) {
            if (columns > 2048) fetch(base); // else still held
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int k = base + thread + i * 256;
                if (k >= columns) continue;
                float v = __fmul_rn(__fmul_rn(__uint_as_float(bits[i]), scale), base == 0 ? norm[i] : weight[k]);
                put(k, BF ? pack1<true>(v) : pack1<false>(v));
            }
        }
    } else {
        const int words = columns / 2;
        const u64* from = mail + (i64)token * words;
#pragma unroll 1
        for (int base = 0; base < words; base += 16 * 256) {
            u32 bits[16];
            receive<16>(bits, from, base + thread, 256, words, tag);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int k = 2 * (base + thread + i * 256);
                if (k >= columns) continue;
                *(u32*)(room.act() + (KIND == INT8_WEIGHT ? token * columns + k : fragment16(token, k, tokens))) = bits[i];
            }
        }
    }
    if (KIND != INT8_WEIGHT) return;
    barrier(id, 256);
    const u16* mine = room.act() + token * columns;
    float largest = 0.0f;
    for (int k = thread * 2; k < columns; k += 512) {
        const u32 pair = *(const u32*)(mine + k);
        for (int i = 0; i < 2; i++) {
            float a = fabsf(half_to_float((u16)(pair >> 16 * i)));
            if (s.threshold == 0.0f || a < s.threshold) largest = fmaxf(largest, a);
        }
    }
    for (int d = 16; d; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, d));
    if (lane == 0) scratch[8 + warp] = largest;
    barrier(id, 256);
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, scratch[8 + i]);
    const float scale = largest > 0.0f ? __fdiv_rn(127.0f, largest) : 0.0f;
    int written = 0; // by the 256 threads
    u16* outliers = room.outliers(s) + token * columns;
    for (int base = 0; base < columns; base += 1024) {
        const int k = base + thread * 4;
        u32 word = 0, mask = 0;
        if (k < columns) {
            const uint2 four = *(const uint2*)(mine + k);
            for (int i = 0; i < 4; i++) {
                float a = half_to_float((u16)((i < 2 ? four.x : four.y) >> 16 * (i & 1)));
                bool outlier = s.threshold > 0.0f && fabsf(a) >= s.threshold;
                int code = outlier ? 0 : __float2int_rn(__fmul_rn(a, scale));
                word |= (u32)(u8)(signed char)code << (8 * i);
                mask |= outlier ? 1u << i : 0u;
            }
            *(u32*)(room.codes(s) + fragment8(token, k, tokens)) = word;
        }
        if (s.threshold == 0.0f) continue;
        int count = __popc(mask), before = count;
        for (int d = 1; d < 32; d <<= 1) {
            int v = __shfl_up_sync(FULL, before, d);
            if (lane >= d) before += v;
        }
        barrier(id, 256); // the round before has been read
        if (lane == 31) ((int*)scratch)[warp] = before;
        barrier(id, 256);
        int at = written + before - count;
        for (int i = 0; i < 8; i++) {
            int there = ((int*)scratch)[i];
            if (i < warp) at += there;
            written += there;
        }
        for (int i = 0; i < 4; i++)
            if (mask >> i & 1) outliers[at++] = (u16)(k + i);
    }
    if (thread == 0) token_absmax[token] = largest, outlier_count[token] = written;
}

// Where a reader or the writer is in the ring. Different warps read a slot in
// turn, and one may come to it before what is there for another has even
// arrived. With one barrier it would take the end of the last round but one for
// its own, so rounds take several in turns: enough for a warp that has read a
// slot to know that ROUNDS - 1 rounds before its next one have ended, since the
// writer goes in order. That takes (ROUNDS - 1) * slots >= WARPS.
#define ROUNDS 3
struct Turn {
    int slot, round;
    __device__ __forceinline__ u32 full(u32 barriers) const { return barriers + 8 * (round % ROUNDS * MOST_SLOTS + slot); }
    __device__ __forceinline__ u32 full_parity() const { return round / ROUNDS & 1; }
    __device__ __forceinline__ u32 empty(u32 barriers) const { return barriers + 8 * (ROUNDS * MOST_SLOTS + slot); }
    __device__ __forceinline__ void advance(int by, int slots) {
        slot += by;
        while (slot >= slots) slot -= slots, round++;
    }
};

// --- the warp that loads. Fills the ring with the tiles of one phase that are
// this block's.
template <int K, bool COUNTED> DEV void fill(const Phase& phase, int rows, int columns, u32 ring, int stride, u32 barriers, int slots, Turn& at) {
    constexpr int UNITS = Unit<K>::COUNT, BYTES = Unit<K>::BYTES;
    const int lane = threadIdx.x & 31;
    const int tiles = (rows + 15) >> 4, segments = columns >> 8, chunks = columns >> 6, each = (segments + UNITS - 1) / UNITS;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const u8* from = phase.weight + (i64)tile * segments * BYTES;
        for (int j = 0; j < each; j++, from += SLOT) {
            const int units = min(UNITS, segments - j * UNITS);
            const u32 to = ring + at.slot * stride, done = at.full(barriers);
            barrier_wait(at.empty(barriers), at.round & 1 ^ 1);
            // A thread left behind by two rounds would take one parity for the other.
            __syncwarp();
            if (lane == 0) {
                barrier_expect(done, units * BYTES);
                copy_bulk(to, from, units * BYTES, done);
                if (COUNTED && K != BIT4_WEIGHT) barrier_arrive(done, 32);
            }
            if (K == BIT4_WEIGHT) {
                const u32 scales = to + SLOT;
                // Row r of the tile; pairs of a row and a unit.
                auto row_of = [&](int r, const Part*& part) {
                    Place place = place_of(phase.parts, tile * 2 + (r >> 3));
                    part = phase.parts.part + place.part;
                    return (i64)(place.row + (r & 7)) * chunks + j * 16;
                };
                const Part* part;
                if (!phase.parts.part[0].plain) {
                    if (lane < 16) {
                        const i64 block = row_of(lane, part);
                        if ((chunks & 15) == 0) copy16_to(scales + lane * 16, part->codes + block);
                        else
                            for (int u = 0; u < units; u++) copy4(scales + lane * 16 + u * 4, part->codes + block + u * 4);
                        copy4(scales + 512 + lane * 4, part->offset);
                    }
                    for (int i = lane; i < 64; i += 32) {
                        const i64 block = row_of(i >> 2, part);
                        if ((i & 3) < units) copy4(scales + 256 + i * 4, part->nested + (block + (i & 3) * 4 >> 8));
                    }
                } else {
                    for (int i = lane; i < 64; i += 32) {
                        const i64 block = row_of(i >> 2, part);
                        if ((i & 3) < units) copy16_to(scales + i * 16, part->plain + block + (i & 3) * 4);
                    }
                }
                barrier_arrive_copied(done);
            }
            at.advance(1, slots);
        }
    }
}

// --- the warps that multiply: one unit
template <int K, bool BF>
DEV void multiply(u32 from, int u, u32 map_at, bool plain, float inverse, const uint4* b_at, int tokens, bool real_token, float (&acc)[4], int (&acc8)[4]) {
    const int lane = threadIdx.x & 31;
    const u32 mine = from + u * Unit<K>::BYTES + lane * 16;
    const int line = tokens * 4;
    if (K == BIT4_WEIGHT) {
        // Lane t decodes the absmax values of chunk t, rows g and g + 8.
        const int g = lane >> 2, t = lane & 3;
        float scale[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = g + 8 * h;
            const u32 scales = from + SLOT;
            if (plain) {
                scale[h] = __uint_as_float(load_shared(scales + (row * 16 + u * 4 + t) * 4));
            } else {
                const u32 code = load_shared1(scales + row * 16 + u * 4 + t);
                const float nested = __uint_as_float(load_shared(scales + 256 + (row * 4 + u) * 4));
                const float offset = __uint_as_float(load_shared(scales + 512 + row * 4));
                scale[h] = __fadd_rn(__fmul_rn(__uint_as_float(load_shared(map_at + code * 4)), nested), offset);
            }
        }
        const u32 replica = replica_of<BF>(lane), bits[2] = {scale_bits<BF>(scale[0], inverse), scale_bits<BF>(scale[1], inverse)};
#pragma unroll 1
        for (int c = 0; c < 4; c++) {
            Scale<BF> s[2];
#pragma unroll
            for (int h = 0; h < 2; h++) take_scale(s[h], __shfl_sync(FULL, bits[h], (lane & 28) | c));
            const uint4 v = load_shared16(mine + c * 512);
            const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int p = 0; p < 2; p++, b_at += line) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (real_token) b = *b_at;
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    u32 a[4];
#pragma unroll
                    for (int r = 0; r < 4; r++) a[r] = weights_of(byte_times_128(word[2 * p + j], r) | replica, s[r & 1]);
                    mma16<BF>(acc, a, j ? b.z : b.x, j ? b.w : b.y);
                }
            }
        }
    } else {
        constexpr int PAIRS = K == F16_WEIGHT ? 8 : 4;
#pragma unroll 4
        for (int p = 0; p < PAIRS; p++, b_at += line) {
            uint4 b = make_uint4(0, 0, 0, 0);
            if (real_token) b = *b_at;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint4 v = load_shared16(mine + (2 * p + j) * 512);
                const u32 a[4] = {v.x, v.y, v.z, v.w};
                if (K == INT8_WEIGHT) mma8(acc8, a, j ? b.z : b.x, j ? b.w : b.y);
                else mma16<BF>(acc, a, j ? b.z : b.x, j ? b.w : b.y);
            }
        }
    }
}

#define QKV 0
#define O 1
#define GATE_UP 2
#define DOWN 3
#define HEAD 4

DEV void stamp(const Step& s, int phase, int which) {
    if (!s.timeline || threadIdx.x) return;
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    s.timeline[((i64)blockIdx.x * (4 * s.layers + 1) + phase) * 4 + which] = now;
}

// All products of this block in one phase, and what becomes of them. `at`
// counts slots of the ring. The best of the thread's token so far, for HEAD.
template <int K, bool BF>
DEV u64 products(const Step& s, int number, int which, u32 tag, const Pointers& phase, int rows, int columns, u32 ring, int stride, u32 barriers,
                 u32 map_at, int& at, const Room& room, u64 best) {
    constexpr int UNITS = Unit<K>::COUNT, GROUP = WARPS / UNITS; // slots that all warps together take at a time
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, tokens = s.batch;
    const int tiles = (rows + 15) >> 4, segments = columns >> 8, each = (segments + UNITS - 1) / UNITS;
    const int mine = (tiles - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x; // may be none
    // As many tiles as there are threads to finish their rows and room for their sums.
    const int together = max(1, min(CONSUMERS / 16 / tokens, s.sums_floats / (segments * tokens * PAD)));
    const float inverse = K == BIT4_WEIGHT ? __fdiv_rn(1.0f, factor_of<BF>(s.table)) : 1.0f;
    const int u = warp % UNITS;
    int in_tile = warp / UNITS, tile = in_tile / each;
    in_tile -= tile * each;
    Turn turn = {(at + warp / UNITS) % s.ring_slots, (at + warp / UNITS) / s.ring_slots};
    const bool real_token = g < tokens;
    const uint4* b_from = (const uint4*)(K == INT8_WEIGHT ? (const void*)room.codes(s) : (const void*)room.act()) + g * 4 + t;

    const int row16 = threadIdx.x & 15, token = (threadIdx.x >> 4) % tokens, finished = (threadIdx.x >> 4) / tokens;
    for (int first = 0, round = 0; first < mine; first += together, round ^= 1) {
        const int end = min(mine, first + together);
        float* sums = room.sums(s, round);
        const int real_tile = (int)blockIdx.x + (first + finished) * (int)gridDim.x, row = real_tile * 16 + row16;
        const bool real = first + finished < end && row < rows;
        const float row_absmax = K == INT8_WEIGHT && real ? phase.row_absmax[row] : 0.0f;
        while (tile < end) {
            barrier_wait(turn.full(barriers), turn.full_parity());
            __syncwarp(); // tensor cores want all threads of a warp together
            const int segment = in_tile * UNITS + u;
            if (segment < segments) {
                float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                int acc8[4] = {0, 0, 0, 0};
                multiply<K, BF>(ring + turn.slot * stride, u, map_at, s.plain, inverse, b_from + segment * (K == INT8_WEIGHT ? 4 : 8) * tokens * 4,
                                tokens, real_token, acc, acc8);
                float* to = sums + ((tile - first) * segments + segment) * tokens * PAD + g;
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int token = 2 * t + (i & 1);
                    float v = K == INT8_WEIGHT ? __int_as_float(acc8[i]) : acc[i];
                    if (token < tokens) to[token * PAD + 8 * (i >> 1)] = v;
                }
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(turn.empty(barriers), 4 / UNITS);
            turn.advance(GROUP, s.ring_slots);
            for (in_tile += GROUP; in_tile >= each; in_tile -= each) tile++;
        }
        consumers();
        if (end == mine) stamp(s, number, 2);
        // A thread finishes a row of a tile for a token.
        const float* from = sums + (finished * segments * tokens + token) * PAD + row16;
        float y = 0.0f;
        if (real) {
            if (K == INT8_WEIGHT) {
                int total = 0;
#pragma unroll 4
                for (int i = 0; i < segments; i++) total += __float_as_int(from[i * tokens * PAD]);
                const u16* outliers = room.outliers(s) + token * columns;
                auto outlier = [&](int i) { return (u32)outliers[i] << 16 | room.act()[token * columns + outliers[i]]; };
                y = int8_result(total, row, row_absmax, token_absmax[token], outlier_count[token], outlier, phase.weight, columns);
            } else {
#pragma unroll 8
                for (int i = 0; i < segments; i++) y = __fadd_rn(y, from[i * tokens * PAD]);
            }
        }
        if (which == QKV) {
            if (real) send(s.qkv + (i64)token * rows + row, __float_as_uint(y), tag);
        } else if (which == GATE_UP) {
            // Rows 0 to 7 of a tile are gates, the others what goes through them.
            const float up = __shfl_down_sync(FULL, y, 8);
            const float v = silu_times(y, up);
            const u32 low = BF ? pack1<true>(v) : pack1<false>(v), high = __shfl_down_sync(FULL, low, 1);
            const int column = real_tile * 8 + (row16 & 7);
            if (real && !(row16 & 9)) send(s.act + ((i64)token * (rows / 2) + column) / 2, low | high << 16, tag);
        } else if (which == HEAD) {
            if (real) best = larger(best, rank_of(y, (u32)row));
        } else if (real) {
            float* own = room.own(s) + ((first + finished) * tokens + token) * 16 + row16;
            *own = y = __fadd_rn(*own, y);
            send((which == O ? s.after_attention : s.after_layer) + (i64)token * rows + row, __float_as_uint(y), tag);
        }
    }
    at += max(mine, 0) * each;
    consumers(); // sums and activations may be written over
    return best;
}

// --- attention of this block's share: a token and the heads that share keys
// and values. `chunk` has room for `together` chunks, `q` for 16 rows.
template <int HD>
DEV void attention(const Step& s, int layer, u32 tag, uint4* chunk, u32 (*q)[HD / 2 + 4], u16* fresh, int bf16) {
    constexpr int LINE = HD / 8, SIZE = CHUNK * LINE, HALF = HD / 2;
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    const int group = s.heads / s.kv_heads, width = (s.heads + 2 * s.kv_heads) * HD;
    // From the last block on: those have no more than one tile of most products.
    for (int item = gridDim.x - 1 - blockIdx.x; item < s.kv_heads * s.batch; item += gridDim.x) {
        const int kv = item % s.kv_heads, row = item / s.kv_heads;
        const int position = s.positions[row], chunks = position / CHUNK + 1;
        const i64 base = layer * s.layer_stride + cached_at(s.slots[row], kv, 0, s.kv_heads, s.context, HD);
        auto load = [&](int first) {
            const int n = min(s.together, chunks - first) * SIZE;
#pragma unroll 1
            for (int i = threadIdx.x; i < n; i += CONSUMERS) {
                const int c = i / SIZE, r = i % SIZE / LINE, part = i % LINE, at = (first + c) * CHUNK + r;
                const bool there = at < position;
                const i64 from = base + (there ? (i64)at * HD + part * 8 : 0);
                uint4* to = chunk + c * 2 * SIZE + swizzled<HD>(r, part);
                copy16(to, s.keys + from, there);
                copy16(to + SIZE, s.values + from, there);
            }
            copy_commit();
        };
        load(0);
        // Rotates queries and the new key; the new value.
        const u64* mail = s.qkv + (i64)row * width;
        const int pairs = (group + 1) * HALF;
#pragma unroll 1
        for (int i = threadIdx.x; i < pairs + HD; i += CONSUMERS) {
            u32 bits[2];
            if (i < pairs) {
                const int h = i / HALF, d = i % HALF;
                const float cosine = s.cosines[(i64)position * HALF + d], sine = s.sines[(i64)position * HALF + d];
                const int first = (h < group ? kv * group + h : s.heads + kv) * HD + d;
                receive<2>(bits, mail, first, HALF, width, tag);
                u16 low, high;
                rotate(__uint_as_float(bits[0]), __uint_as_float(bits[1]), cosine, sine, low, high);
                u16* to = h < group ? (u16*)q[h] : fresh;
                to[d] = low, to[HALF + d] = high;
                if (h == group) s.keys[base + (i64)position * HD + d] = low, s.keys[base + (i64)position * HD + HALF + d] = high;
            } else {
                const int d = i - pairs;
                u32 one[1];
                receive<1>(one, mail, (s.heads + s.kv_heads + kv) * HD + d, 0, width, tag);
                const u16 value = float_to_half(__uint_as_float(one[0]));
                fresh[HD + d] = value;
                s.values[base + (i64)position * HD + d] = value;
            }
        }
        // One warp a head merges the chunks, one after the other.
        float m = __int_as_float(0xff800000), l = 0.0f, o[HD / 32];
#pragma unroll
        for (int j = 0; j < HD / 32; j++) o[j] = 0.0f;
#pragma unroll 1
        for (int first = 0; first < chunks; first += s.together) {
            if (first) load(first);
            const int n = min(s.together, chunks - first);
            copy_wait<0>();
            consumers();
            if (first + n == chunks) { // the new position's place
                u16* last = (u16*)(chunk + (chunks - 1 - first) * 2 * SIZE);
#pragma unroll 1
                for (int i = threadIdx.x; i < 2 * HD; i += CONSUMERS) {
                    const int d = i % HD;
                    last[i / HD * SIZE * 8 + swizzled<HD>(position % CHUNK, d / 8) * 8 + d % 8] = fresh[i];
                }
                consumers();
            }
            if (warp < n) {
                auto query = [&](int k, u32 (&a)[4]) {
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const bool there = g + 8 * h < group;
                        a[h] = there ? q[g + 8 * h][k * 8 + t] : 0u;
                        a[2 + h] = there ? q[g + 8 * h][k * 8 + 4 + t] : 0u;
                    }
                };
                u32 p[4][4];
                float most[2], sum[2];
                const int limit[2] = {position, position};
                uint4* mine = chunk + warp * 2 * SIZE;
                weigh<HD>(p, most, sum, query, mine, (first + warp) * CHUNK, limit, s.scale);
                __syncwarp(); // results take the place of the keys
                float* to[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    to[h] = (float*)mine + (g + 8 * h) * (HD + 2);
                    if (g + 8 * h < group && t == 0) *(float2*)(to[h] + HD) = make_float2(most[h], sum[h]);
                }
#pragma unroll
                for (int n = 0; n < HD / 16; n++) {
                    float o[2][4];
                    weighted<HD>(o[0], o[1], p, mine + SIZE, n);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (g + 8 * (i & 1) < group)
                            *(float2*)(to[i & 1] + n * 16 + (i >> 1) * 8 + 2 * t) = make_float2(o[i >> 1][2 * (i & 1)], o[i >> 1][2 * (i & 1) + 1]);
                }
            }
            consumers();
            if (warp < group) {
                const float* from = (const float*)chunk + warp * (HD + 2);
#pragma unroll 1
                for (int c = 0; c < n; c++, from += 2 * SIZE * 4) {
                    Weights w = weights_of(m, from[HD]);
                    m = w.m;
                    l = merged(l, from[HD + 1], w);
#pragma unroll
                    for (int j = 0; j < HD / 32; j++) o[j] = merged(o[j], from[lane + 32 * j], w);
                }
            }
            consumers();
        }
        if (warp < group) {
            u64* to = s.attended + ((i64)row * s.heads * HD + (kv * group + warp) * HD) / 2;
#pragma unroll
            for (int j = 0; j < HD / 32; j++) {
                const float v = __fdiv_rn(o[j], l);
                const u32 low = bf16 ? pack1<true>(v) : pack1<false>(v), high = __shfl_down_sync(FULL, low, 1);
                if (!(lane & 1)) send(to + (lane + 32 * j) / 2, low | high << 16, tag);
            }
        }
    }
}

template <int KIND, bool BF, int HD> DEV void walk(const Step& s) {
    extern __shared__ uint4 shared[];
    __shared__ u64 all_barriers[ROUNDS + 1][MOST_SLOTS]; // a slot is full, it is empty
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, tokens = s.batch;
    const u32 bottom = (u32)__cvta_generic_to_shared(shared);
    if (KIND == BIT4_WEIGHT && bottom > TABLE_AT) __trap();
    const u32 map_at = TABLE_AT + TABLE_BYTES;
    const u32 ring = KIND == BIT4_WEIGHT ? map_at + 1024 : (bottom + 127) & ~127u;
    constexpr int STRIDE = SLOT + (KIND == BIT4_WEIGHT ? SCALES : 0);
    const u32 barriers = (u32)__cvta_generic_to_shared(all_barriers);
    const Room room = {(char*)shared + (ring - bottom) + s.ring_slots * STRIDE};
    // Behind its rows of the residual stream.
    u32(*q)[HD / 2 + 4] = (u32(*)[HD / 2 + 4])(room.at + s.room_bytes + s.own_bytes);
    u16* fresh = (u16*)(q + 16);
    u64* staged = (u64*)(fresh + 2 * HD);                   // a phase, for the warp that loads
    Pointers* pointers = (Pointers*)(staged + PHASE_WORDS); // of all phases

    constexpr bool COUNTED = KIND == BIT4_WEIGHT; // every lane of the warp that loads arrives
    if (threadIdx.x == 0) {
        for (int i = 0; i < (ROUNDS + 1) * MOST_SLOTS; i++) barrier_init(barriers + 8 * i, i >= ROUNDS * MOST_SLOTS ? 4 : COUNTED ? 33 : 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    const int last = 4 * s.layers;
    const int qkv_rows = s.q_width + 2 * s.kv_heads * HD;
    auto shape = [&](int which, int& rows, int& columns) {
        rows = which == QKV ? qkv_rows : which == GATE_UP ? 2 * s.intermediate : which == HEAD ? s.vocab : s.hidden;
        columns = which == O ? s.q_width : which == DOWN ? s.intermediate : s.hidden;
    };
    if (warp == WARPS) {
        Turn at = {0, 0};
        u64 word = s.phases[lane]; // of the next phase
        for (int p = 0; p <= last; p++) {
            __syncwarp();
            staged[lane] = word;
            __syncwarp();
            if (p < last) word = s.phases[(p + 1) * PHASE_WORDS + lane];
            const Phase& phase = *(const Phase*)staged;
            int rows, columns;
            shape(p == last ? HEAD : p & 3, rows, columns);
            if (p == last) fill<F16_WEIGHT, COUNTED>(phase, rows, columns, ring, STRIDE, barriers, s.ring_slots, at);
            else fill<KIND, COUNTED>(phase, rows, columns, ring, STRIDE, barriers, s.ring_slots, at);
        }
        return;
    }

    if (KIND == BIT4_WEIGHT) {
        float* maps = (float*)((char*)shared + (map_at - bottom));
        fill_pairs<BF>((uint4*)((char*)shared + (TABLE_AT - bottom)), s.table, CONSUMERS);
        for (int i = threadIdx.x; i < 256; i += CONSUMERS) maps[i] = s.map[i];
    }
    for (int i = threadIdx.x; i < ((s.hidden / 16 - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x) * tokens * 16; i += CONSUMERS) {
        const int row = ((i >> 4) / tokens * (int)gridDim.x + (int)blockIdx.x) * 16 + (i & 15);
        room.own(s)[i] = half_to_float(s.embedding[at_f16((int)s.tokens[(i >> 4) % tokens], row, s.hidden)]);
    }
    for (int i = threadIdx.x; i <= last; i += CONSUMERS) {
        const Phase* phase = (const Phase*)(s.phases + i * PHASE_WORDS);
        pointers[i] = Pointers{phase->weight, phase->norm, phase->row_absmax};
    }
    consumers();
    const u32 first_tag = s.counters[0] * (u32)s.layers + 1;
    const int half = warp >> 3, thread = threadIdx.x & 255;
    u64 best = 0;
    int at = 0;
    for (int p = 0; p <= last; p++) {
        const int which = p == last ? HEAD : p & 3, layer = p >> 2;
        const u32 tag = first_tag + (u32)layer;
        const Pointers& phase = pointers[p];
        int rows, columns;
        shape(which, rows, columns);
        stamp(s, p, 0);
        if (which == O) attention<HD>(s, layer, tag, (uint4*)room.act(), q, fresh, BF);
        if ((int)blockIdx.x * 16 >= rows) continue; // no tile of this phase
        const bool normed = which != O && which != DOWN;
        float norm[8];
        const float* weight = phase.norm;
#pragma unroll
        for (int i = 0; i < 8; i++) norm[i] = normed && thread + i * 256 < columns ? weight[thread + i * 256] : 0.0f;
        const int source = !normed ? FROM_PAIRS : p == 0 ? FROM_TABLE : FROM_RESIDUAL;
        const u64* mail = which == O ? s.attended : which == DOWN ? s.act : which == GATE_UP ? s.after_attention : s.after_layer;
        // What the layer before left has its tag.
        const u32 wanted = which == QKV || which == HEAD ? tag - 1 : tag;
        for (int token = half; token < tokens; token += 2) {
            if (which == HEAD && KIND != F16_WEIGHT) bring<F16_WEIGHT, false>(s, source, mail, wanted, weight, norm, columns, token, room, thread, half);
            else bring<KIND, BF>(s, source, mail, wanted, weight, norm, columns, token, room, thread, half);
        }
        consumers();
        stamp(s, p, 1);
        if (which == HEAD && KIND != F16_WEIGHT)
            best = products<F16_WEIGHT, false>(s, p, which, tag, phase, rows, columns, ring, STRIDE, barriers, map_at, at, room, best);
        else
            best = products<KIND, BF>(s, p, which, tag, phase, rows, columns, ring, STRIDE, barriers, map_at, at, room, best);
        stamp(s, p, 3);
    }
    // The best of each token over the block, then over all blocks. The warp that
    // loads has done so.
    u64* ranks = staged;
    for (int d = 8; d; d >>= 1) best = larger(best, __shfl_xor_sync(FULL, best, d));
    if ((lane & 15) == 0) ranks[threadIdx.x >> 4] = best; // of token (thread / 16) % tokens
    consumers();
    if (threadIdx.x >= tokens) return;
    for (int i = threadIdx.x; i < WARPS * 2; i += tokens) best = i == threadIdx.x ? ranks[i] : larger(best, ranks[i]);
    atomicMax(s.best + threadIdx.x, best);
    __threadfence();
    __syncwarp((1u << tokens) - 1);
    u32 ended = 0;
    if (threadIdx.x == 0) ended = atomicAdd(s.counters + 1, 1u);
    ended = __shfl_sync((1u << tokens) - 1, ended, 0);
    if (ended != gridDim.x - 1) return;
    // The last block: the next tokens, so that the next step can follow at once.
    __threadfence();
    const u64 rank = atomicExch(s.best + threadIdx.x, 0ull);
    const u32 next = 0xffffffffu - (u32)rank;
    s.tokens[threadIdx.x] = next;
    s.positions[threadIdx.x] += 1;
    s.chosen[threadIdx.x] = next;
    if (threadIdx.x == 0) s.counters[1] = 0, s.counters[0] += 1;
}

#define PERSISTENT(NAME, KIND, BF, HD)                                                                        \
    extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1) NAME##_##HD(const __grid_constant__ Step s) { \
        walk<KIND, BF, HD>(s);                                                                                \
    }
#define BOTH(NAME, KIND, BF) PERSISTENT(NAME, KIND, BF, 64) PERSISTENT(NAME, KIND, BF, 128)
#ifdef PERSISTENT_F16
BOTH(persistent_f16, F16_WEIGHT, false)
#endif
#ifdef PERSISTENT_4BIT
BOTH(persistent_bit4, BIT4_WEIGHT, false)
#endif
#ifdef PERSISTENT_4BIT_BF16
BOTH(persistent_bit4_bf16, BIT4_WEIGHT, true)
#endif
#ifdef PERSISTENT_INT8
BOTH(persistent_int8, INT8_WEIGHT, false)
#endif
#endif
