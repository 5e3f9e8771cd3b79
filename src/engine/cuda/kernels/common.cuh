// What all kernels share: types, conversions, tensor-core and copy
// instructions, and the layouts of weights and activations. No CUDA header is
// needed: 16-bit floats travel as their bits.
//
// Layouts. "Tile" means 16 packed rows of a weight; lane = 4 * g + t is the
// place of a thread in its warp, as in the fragments of mma.m16n8k16.
//
//   FP16 weight   [tile][k / 16][lane] 16 bytes: a0..a3 of one mma
//   4-bit weight  [tile][k / 64][lane] 16 bytes: word j belongs to the j-th mma,
//                 byte b of it to a_b, the even column in the low nibble
//   int8 weight   [tile][k / 32][lane] 16 bytes: a0..a3 of one mma.m16n8k32
//   activations   [token / 8][k / 8][token % 8][k % 8] 16-bit numbers, or
//                 [token / 8][k / 16][token % 8][k % 16] int8
//
// Every sum over k runs in one order, whatever the batch: mma by mma within a
// segment of SEGMENT columns, each segment from zero, then segment by segment.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define SEGMENT 256
#define FULL 0xffffffffu
#define DEV static __device__ __forceinline__

// --- dependent launches: a kernel may start while the one before it still
// runs; nothing that kernel wrote may be touched before pdl_wait.
DEV void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEV void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- 16-bit floats. BF is true for bfloat16.
DEV float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
DEV u16 float_to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
DEV float half_rounded(float f) { return half_to_float(float_to_half(f)); }
template <bool BF> DEV u32 pack2(float low, float high) {
    u32 d;
    if (BF) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
template <bool BF> DEV u16 pack1(float x) { return (u16)pack2<BF>(x, 0.0f); }

// --- loads
DEV uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
DEV void copy16(void* shared, const void* global, bool wanted) {
    u32 to = (u32)__cvta_generic_to_shared(shared);
    int bytes = wanted ? 16 : 0; // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
DEV void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> DEV void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// --- tensor cores
template <bool BF> DEV void mma16(float c[4], const u32 a[4], u32 b0, u32 b1) {
    if (BF)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEV void mma8(int c[4], const u32 a[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- where activations lie: in 16-bit numbers, and in bytes for int8
DEV i64 at16(int token, int k, int columns) {
    return ((i64)(token >> 3) * (columns >> 3) + (k >> 3)) * 64 + (token & 7) * 8 + (k & 7);
}
DEV i64 at8(int token, int k, int columns) {
    return ((i64)(token >> 3) * (columns >> 4) + (k >> 4)) * 128 + (token & 7) * 16 + (k & 15);
}

// --- several matrices packed as one: one after the other (q, k, v), or in
// turns of 8 rows (gate, up), so that a thread holds both halves of SwiGLU
struct Part {
    const u8* codes;       // double quantisation: [blocks]
    const float* nested;   // [blocks / 256]
    const float* plain;    // [blocks], or null under double quantisation
    const float* offset;   // [1]
    int rows;
    int unused;
};
struct Parts {
    Part part[3];
    int count;
    int interleaved;
    int block_shift; // log2 of the weights that share one absmax
    int rows;        // of all parts together
};
struct Place {
    int part;
    int row;
};
// The part and row of the first of 8 packed rows.
DEV Place place_of(const Parts& parts, int eight) {
    if (parts.interleaved) return Place{eight & 1, (eight >> 1) * 8};
    int row = eight * 8, part = 0;
    while (part + 1 < parts.count && row >= parts.part[part].rows) row -= parts.part[part++].rows;
    return Place{part, row};
}
DEV float absmax_of(const Part& part, i64 block, const float* map) {
    if (part.plain) return part.plain[block];
    return __fadd_rn(__fmul_rn(map[part.codes[block]], part.nested[block >> 8]), *part.offset);
}

// --- the order of floats as unsigned integers, the lower index first among equals
DEV u64 rank_of(float value, u32 index) {
    u32 bits = __float_as_uint(value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)bits << 32 | (0xffffffffu - index);
}
DEV u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// e^x through 2^x: within 2 ulps, the same in every kernel.
DEV float exp_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(__fmul_rn(x, 1.4426950408889634f)));
    return y;
}
DEV float silu_times(float gate, float up) {
    return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, exp_of(-gate))), up);
}
