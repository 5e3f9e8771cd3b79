// From plain weights to packed ones and back. Every kernel strides over its
// grid with 64-bit counts.

#define GRID_STRIDE(i, n) \
    for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x, stride_ = (i64)gridDim.x * blockDim.x; i < (n); i += stride_)

// Packed row of row `row` of part `part`.
DEV int packed_row(const Parts& parts, int part, int row) {
    if (parts.interleaved) return (row >> 3) * 16 + part * 8 + (row & 7);
    for (int p = 0; p < part; p++) row += parts.part[p].rows;
    return row;
}
// Place of (packed row, k) in the 4-bit layout, in bytes; even columns are low nibbles.
DEV i64 at_4bit(int row, int k, int columns) {
    int kk = k & 15;
    int lane = (row & 7) * 4 + ((kk & 7) >> 1);
    int reg = ((row >> 3) & 1) + 2 * (kk >> 3);
    return (((i64)(row >> 4) * (columns >> 6) + (k >> 6)) * 32 + lane) * 16 + ((k >> 4) & 3) * 4 + reg;
}

// Numbers of a checkpoint to FP16: kind 0 FP16, 1 BF16, 2 f32, rounded to
// nearest. Counts numbers that FP16 cannot hold (or that are not finite).
extern "C" __global__ void to_f16(const void* source, int kind, u16* to, i64 n, u32* bad) {
    pdl_wait();
    GRID_STRIDE(i, n) {
        u16 h;
        if (kind == 0) h = ((const u16*)source)[i];
        else if (kind == 1) h = float_to_half(__uint_as_float((u32)((const u16*)source)[i] << 16));
        else h = float_to_half(((const float*)source)[i]);
        to[i] = h;
        if ((h & 0x7c00) == 0x7c00) atomicAdd(bad, 1u);
    }
}

// [rows, columns] of part `part` into the FP16 layout.
extern "C" __global__ void pack_f16(const u16* values, Parts parts, int part, int columns, u16* to) {
    pdl_wait();
    i64 n = (i64)parts.part[part].rows * columns;
    GRID_STRIDE(i, n) {
        to[at_f16(packed_row(parts, part, (int)(i / columns)), (int)(i % columns), columns)] = values[i];
    }
}

// tables: 16 values, then the thresholds (15 of NF4, or 7 of FP4).
DEV int nearest_code(const float* thresholds, int fp4, float x) {
    int count = 0;
    if (!fp4) {
        for (int i = 0; i < 15; i++) count += x > thresholds[i];
        return count;
    }
    for (int i = 0; i < 7; i++) count += fabsf(x) > thresholds[i];
    return (int)(0x32547610u >> (4 * count) & 15u) | (x < 0.0f ? 8 : 0);
}

// One thread a block of weights. absmax: [blocks of the part].
extern "C" __global__ void quantise_4bit(const u16* values, Parts parts, int part, int columns,
                                         const float* thresholds, int fp4, u8* to, float* absmax) {
    pdl_wait();
    __shared__ float limits[15];
    if (threadIdx.x < (fp4 ? 7 : 15)) limits[threadIdx.x] = thresholds[threadIdx.x];
    __syncthreads();
    i64 n = (i64)parts.part[part].rows * columns;
    int block = 1 << parts.block_shift;
    i64 blocks = (n + block - 1) >> parts.block_shift;
    GRID_STRIDE(b, blocks) {
        i64 start = b << parts.block_shift;
        i64 end = start + block < n ? start + block : n;
        float largest = 0.0f;
        for (i64 i = start; i < end; i++) largest = fmaxf(largest, fabsf(half_to_float(values[i])));
        absmax[b] = largest;
        float reciprocal = __frcp_rn(largest);
        for (i64 i = start; i < end; i += 2) {
            int code[2];
            for (int j = 0; j < 2; j++) {
                float v = half_to_float(values[i + j]);
                code[j] = largest == 0.0f ? (fp4 ? 0 : 7) : nearest_code(limits, fp4, __fmul_rn(v, reciprocal));
            }
            int row = (int)(i / columns), k = (int)(i % columns);
            to[at_4bit(packed_row(parts, part, row), k, columns)] = (u8)(code[0] | code[1] << 4);
        }
    }
}

// Double quantisation: sums of 256 absmax values each, in f64 and in order.
extern "C" __global__ void nested_sums(const float* absmax, i64 blocks, double* sums) {
    pdl_wait();
    i64 n = (blocks + 255) / 256;
    GRID_STRIDE(b, n) {
        double sum = 0.0;
        for (i64 i = b * 256; i < b * 256 + 256 && i < blocks; i++) sum += (double)absmax[i];
        sums[b] = sum;
    }
}
extern "C" __global__ void nested_offset(const double* sums, i64 n, i64 blocks, float* offset) {
    pdl_wait();
    double total = 0.0;
    for (i64 i = 0; i < n; i++) total += sums[i];
    *offset = (float)(total / (double)blocks);
}
// One warp 256 absmax values. map_thresholds: 255 midpoints of the dynamic map.
extern "C" __global__ void quantise_absmax(const float* absmax, i64 blocks, const float* offset,
                                           const float* map_thresholds, u8* codes, float* nested) {
    pdl_wait();
    i64 groups = (blocks + 255) / 256;
    int lane = threadIdx.x & 31;
    i64 warps = (i64)gridDim.x * (blockDim.x >> 5);
    for (i64 group = (i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); group < groups; group += warps) {
        float rest[8], largest = 0.0f;
        for (int j = 0; j < 8; j++) {
            i64 i = group * 256 + j * 32 + lane;
            rest[j] = i < blocks ? __fsub_rn(absmax[i], *offset) : 0.0f;
            largest = fmaxf(largest, fabsf(rest[j]));
        }
        for (int d = 16; d; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, d));
        float reciprocal = largest > 0.0f ? __frcp_rn(largest) : 0.0f;
        for (int j = 0; j < 8; j++) {
            i64 i = group * 256 + j * 32 + lane;
            if (i >= blocks) continue;
            float x = __fmul_rn(rest[j], reciprocal);
            int low = 0, high = 255; // how many thresholds lie below x
            while (low < high) {
                int middle = (low + high) / 2;
                if (map_thresholds[middle] < x) low = middle + 1;
                else high = middle;
            }
            codes[i] = (u8)low;
        }
        if (lane == 0) nested[group] = largest;
    }
}

// One warp a row. row_absmax: by packed row.
extern "C" __global__ void quantise_int8(const u16* values, Parts parts, int part, int columns, u8* to, float* row_absmax) {
    pdl_wait();
    int lane = threadIdx.x & 31;
    int warps = gridDim.x * (blockDim.x >> 5);
    for (int row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); row < parts.part[part].rows; row += warps) {
        const u16* from = values + (i64)row * columns;
        float largest = 0.0f;
        for (int k = lane; k < columns; k += 32) largest = fmaxf(largest, fabsf(half_to_float(from[k])));
        for (int d = 16; d; d >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL, largest, d));
        float scale = largest > 0.0f ? __fmul_rn(__frcp_rn(largest), 127.0f) : 0.0f;
        int packed = packed_row(parts, part, row);
        for (int k = lane; k < columns; k += 32) {
            int code = __float2int_rn(__fmul_rn(half_to_float(from[k]), scale));
            to[at_i8(packed, k, columns)] = (u8)(signed char)code;
        }
        if (lane == 0) row_absmax[packed] = largest;
    }
}

// The 4-bit layout to the 16-bit layout, rounded to FP16 or BF16: what a
// product of many tokens multiplies with, one matrix at a time.
template <bool BF> DEV void unpack_4bit_body(const uint4* packed, const Parts& parts, int columns,
                                             const float* table, const float* map, uint4* to) {
    __shared__ u32 values[16];
    const float factor = factor_of<BF>(table), inverse = __fdiv_rn(1.0f, factor);
    if (threadIdx.x < 16) values[threadIdx.x] = value_bits<BF>(table[threadIdx.x], factor);
    __syncthreads();
    pdl_launch();
    pdl_wait();
    int chunks = columns >> 6;
    i64 n = (i64)((parts.rows + 15) >> 4) * chunks * 32;
    GRID_STRIDE(i, n) {
        int lane = (int)(i & 31), g = lane >> 2;
        i64 at = i >> 5;
        int tile = (int)(at / chunks), chunk = (int)(at % chunks);
        Scale<BF> scale[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            Place place = place_of(parts, tile * 2 + h);
            i64 block = ((i64)(place.row + g) * columns + chunk * 64) >> parts.block_shift;
            take_scale(scale[h], scale_bits<BF>(absmax_of(parts.part[place.part], block, map), inverse));
        }
        uint4 codes = packed[i];
        u32 word[4] = {codes.x, codes.y, codes.z, codes.w};
        for (int j = 0; j < 4; j++) {
            u32 a[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                u32 pair = word[j] >> (8 * r);
                a[r] = scaled_values(values[pair & 15], values[pair >> 4 & 15], scale[r & 1]);
            }
            to[((i64)tile * (columns >> 4) + chunk * 4 + j) * 32 + lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    }
}
extern "C" __global__ void __launch_bounds__(256) unpack_4bit_f16(const uint4* packed, Parts parts, int columns,
                                                                 const float* table, const float* map, uint4* to) {
    unpack_4bit_body<false>(packed, parts, columns, table, map, to);
}
extern "C" __global__ void __launch_bounds__(256) unpack_4bit_bf16(const uint4* packed, Parts parts, int columns,
                                                                  const float* table, const float* map, uint4* to) {
    unpack_4bit_body<true>(packed, parts, columns, table, map, to);
}

// A random weight: a sum of four 16-bit numbers from a counter-based hash,
// centred and scaled; the same on every machine, since all of it is exact but
// the last product and rounding.
extern "C" __global__ void random_f16(u16* to, i64 n, u64 seed, float scale) {
    pdl_wait();
    GRID_STRIDE(i, n) {
        u64 z = seed + (u64)i * 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        z ^= z >> 31;
        int sum = (int)(z & 0xffff) + (int)(z >> 16 & 0xffff) + (int)(z >> 32 & 0xffff) + (int)(z >> 48);
        to[i] = float_to_half(__fmul_rn((float)(sum - 131070), scale));
    }
}
