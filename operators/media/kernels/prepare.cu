// From a batch of pitched NV12 or P010 pictures to a tensor, in one launch. What it means: operators/media/pixels.py.
//
// A block makes a tile of TILE_WIDTH x 2^k outputs, k chosen for the batch by operators/media/pixels_cuda.py:
//   0. tile_of: one thread finds which rows and columns of the picture the tile needs.
//   1. filter_rows: asks for all of them at once, so that memory is waited for once. Then each thread has one column
//      of outputs, and takes its weighted sum of ROWS rows of the picture at a time, for all rows that the tile needs,
//      into shared memory. Weights are found once for ROWS rows.
//   2. finish: each thread sums its columns of those, converts the colour, and stores; or stores the pad colour.
// Where the rows a tile needs are too many for shared memory, finish sums rows itself, again for each output.
//
// Rows are summed in whole numbers: weights are rounded to 16 bits (their sum divides, so a constant stays the
// constant), samples are taken four bytes at a time, and one instruction (dp2a) multiplies two weights with two
// bytes: no byte is made a float. Each weight is off by at most half, so a mean by at most 255 * 0.5 * taps / sum of
// weights: with 16 bits and taps of half the peak on average, 0.004 steps of 8 bits. Places are fixed point, 32 bits
// of fraction: a picture 8K wide has no less precision than a small one.
//
// Memory: each byte of a plane comes from DRAM once; tiles that overlap by the filter's reach find it in L2. A warp
// reads consecutive words of a row. Consecutive threads store consecutive outputs whatever the rotation (NHWC: every
// third, by three stores). A row is read by words only where they are aligned and end in the row: no byte outside a
// plane is read.
#ifndef __CUDACC__
#include "host.h"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define FUNCTION static __device__ __forceinline__

#ifdef __CUDACC__
FUNCTION u32 dot_low(u32 pair, u32 bytes, u32 sum) {
    asm("dp2a.lo.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pair), "r"(bytes));
    return sum;
}
FUNCTION u32 dot_high(u32 pair, u32 bytes, u32 sum) {
    asm("dp2a.hi.u32.u32 %0, %1, %2, %0;" : "+r"(sum) : "r"(pair), "r"(bytes));
    return sum;
}
FUNCTION u16 float16_of(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
FUNCTION u32 bits_of(float value) { return __float_as_uint(value); }
FUNCTION void fetch(const u8 *place) { asm volatile("prefetch.global.L2 [%0];" ::"l"(place)); }
#endif

enum { THREADS = 256, BLOCKS = 4 };  // of a block; on a multiprocessor at once: 64 registers a thread
enum { LOG2_TILE_WIDTH = 6, TILE_WIDTH = 1 << LOG2_TILE_WIDTH, ROWS = 4 };
enum { FLOAT32, FLOAT16, BFLOAT16 };

// --- what is told, laid out as operators/media/pixels_cuda.py packs it ---------------------------------------------

struct Axis {         // how an axis of a plane falls on the grid, in samples
    i64 first_q32;    // where output 0 stands
    i64 step_q32;     // from one output to the next
    i64 reach_q32;    // half the width of the triangle, at least 1
    float slope;      // 1 / reach
    float peak;       // the largest whole weight
    int num, unused;  // samples there are
};

struct Plane {
    const u8 *samples;
    i64 pitch;  // bytes from one row to the next
    Axis x, y;
    int is_aligned, unused;  // samples and pitch are multiples of four
};

struct Picture {
    Plane luma, chroma;
    float y, red_cr, green_cb, green_cr, blue_cb, red, green, blue;  // products, and what is added
    int left, top, width, height;                                    // of the output: what shows the picture
    int num_turns, sample_bytes;                                     // clockwise quarters; 1 or 2
};

struct Target {                                       // strides in elements
    i64 picture_stride, row_stride, pixel_stride, channel[3];  // of R, G, B, as below
    float gain[3], bias[3], pad[3];
    int width, height, dtype;
};

static_assert(sizeof(Axis) == 40 && sizeof(Plane) == 104 && sizeof(Picture) == 264 && sizeof(Target) == 96, "packed");

struct alignas(8) Pair {
    float cb, cr;
};
struct Sample {
    float y, cb, cr;
};
struct Place {  // of a thread
    int block_x, block_y, block_z, thread;
};

// --- where things are ----------------------------------------------------------------------------------------------

FUNCTION int least(int a, int b) { return a < b ? a : b; }
FUNCTION int most(int a, int b) { return a > b ? a : b; }

struct Taps {  // the samples an output takes: first .. end - 1, the first at `offset` from where the output stands
    int first, end;
    float offset;
};

FUNCTION Taps taps_of(const Axis &axis, int output) {
    const i64 half = 1LL << 31, centre = axis.first_q32 + output * axis.step_q32;
    Taps taps;
    taps.first = most(0, (int)((centre - axis.reach_q32 + half) >> 32));
    taps.end = least(axis.num, (int)((centre + axis.reach_q32 + half) >> 32));
    taps.offset = (float)(taps.first * (1LL << 32) + half - centre) * 2.3283064365386963e-10f;  // 2^-32
    return taps;
}

struct Span {  // the samples of an axis that outputs need
    int first, num;
};

FUNCTION Span span_of(const Axis &axis, int output, int num_outputs) {
    const int first = taps_of(axis, output).first;
    return {first, taps_of(axis, output + num_outputs - 1).end - first};
}

struct Tile {
    int x, y;           // its corner in the output
    int u, v;           // the first column and row of the grid it shows
    int num_u, num_v;   // how many; none where it shows only padding
    int log2_u;         // num_u is at most two to this
    int pitch;          // of a row in shared memory: odd, so that columns fall into different banks
    Span luma, chroma;  // rows of them
    int is_held;        // whether these rows fit
};

// The grid is the picture before it is turned: u along its rows, v down its columns. Of an output of what is shown:
FUNCTION int column_of(const Picture &picture, int x, int y) {
    const int turns = picture.num_turns;
    return turns == 0 ? x : turns == 1 ? y : turns == 2 ? picture.width - 1 - x : picture.height - 1 - y;
}
FUNCTION int row_of(const Picture &picture, int x, int y) {
    const int turns = picture.num_turns;
    return turns == 0 ? y : turns == 1 ? picture.width - 1 - x : turns == 2 ? picture.height - 1 - y : x;
}

FUNCTION Tile tile_of(const Picture &picture, const Place &place, int log2_height, int shared_bytes) {
    Tile tile;
    tile.x = place.block_x << LOG2_TILE_WIDTH;
    tile.y = place.block_y << log2_height;
    const int x0 = most(tile.x - picture.left, 0), x1 = least(tile.x + TILE_WIDTH - picture.left, picture.width);
    const int y0 = most(tile.y - picture.top, 0), y1 = least(tile.y + (1 << log2_height) - picture.top, picture.height);
    const bool is_empty = x0 >= x1 || y0 >= y1, is_across = picture.num_turns & 1;
    tile.u = least(column_of(picture, x0, y0), column_of(picture, x1 - 1, y1 - 1));
    tile.v = least(row_of(picture, x0, y0), row_of(picture, x1 - 1, y1 - 1));
    tile.num_u = is_empty ? 0 : is_across ? y1 - y0 : x1 - x0;
    tile.num_v = is_empty ? 0 : is_across ? x1 - x0 : y1 - y0;
    tile.log2_u = is_across ? log2_height : LOG2_TILE_WIDTH;
    tile.pitch = (1 << tile.log2_u) + 1;
    tile.is_held = 0;
    if (is_empty) return tile;
    tile.luma = span_of(picture.luma.y, tile.v, tile.num_v);
    tile.chroma = span_of(picture.chroma.y, tile.v, tile.num_v);
    const i64 num = (i64)(tile.luma.num + 1 & ~1) + 2 * tile.chroma.num;
    tile.is_held = num * tile.pitch * (int)sizeof(float) <= shared_bytes;
    return tile;
}

FUNCTION float *luma_of(const Tile &, u8 *shared) { return (float *)shared; }
FUNCTION Pair *chroma_of(const Tile &tile, u8 *shared) {
    return (Pair *)((float *)shared + (tile.luma.num + 1 & ~1) * tile.pitch);
}

// --- sums along rows -----------------------------------------------------------------------------------------------

// The four bytes from `at`, a multiple of four; those past the end of the row are 0 and not read.
FUNCTION u32 word_of(const u8 *row, int at, int num_bytes, int is_aligned) {
    if (is_aligned && at + 4 <= num_bytes) return *(const u32 *)(row + at);
    u32 word = 0;
#pragma unroll 1
    for (int i = 0; i < 4 && at + i < num_bytes; ++i) word |= (u32)row[at + i] << 8 * i;
    return word;
}

FUNCTION u32 weight_of(const Taps &taps, float peak, float fall, int sample) {
    const float weight = peak - fabsf(taps.offset + (float)(sample - taps.first)) * fall;
    return sample >= taps.first && sample < taps.end ? (u32)(fmaxf(weight, 0.0f) + 0.5f) : 0;
}

// Of NUM rows, the weighted mean at one column, for each of COMPONENTS interleaved components of SAMPLE_BYTES.
template <int SAMPLE_BYTES, int COMPONENTS, int NUM>
FUNCTION void means_of(const Plane &plane, const Taps &taps, int first_row, int last_row,
                       float (&means)[NUM][COMPONENTS]) {
    enum { BYTES = SAMPLE_BYTES * COMPONENTS, STEP = BYTES == 1 ? 4 : 2 };
    const int num_bytes = plane.x.num * BYTES, is_aligned = plane.is_aligned;
    const float peak = plane.x.peak, fall = peak * plane.x.slope;
    const u8 *row = plane.samples + first_row * plane.pitch;
    int next[NUM];  // how far the others are, in bytes
    u32 sums[NUM][BYTES] = {}, sum = 0;
    for (int i = 0; i < NUM; ++i) next[i] = least(i, last_row - first_row) * (int)plane.pitch;
    for (int at = taps.first & ~(STEP - 1); at < taps.end; at += STEP) {
        const u32 one = weight_of(taps, peak, fall, at), two = weight_of(taps, peak, fall, at + 1);
        const u32 pair = one | two << 16;
        sum += one + two;
        if constexpr (BYTES == 1) {
            const u32 three = weight_of(taps, peak, fall, at + 2), four = weight_of(taps, peak, fall, at + 3);
            const u32 later = three | four << 16;
            sum += three + four;
            for (int i = 0; i < NUM; ++i) {
                const u32 word = word_of(row + next[i], at, num_bytes, is_aligned);
                sums[i][0] = dot_high(later, word, dot_low(pair, word, sums[i][0]));
            }
        } else if constexpr (BYTES == 2) {  // a b a b: two components, or the low and high bytes of one
            for (int i = 0; i < NUM; ++i) {
                const u32 word = __byte_perm(word_of(row + next[i], 2 * at, num_bytes, is_aligned), 0, 0x3120);
                sums[i][0] = dot_low(pair, word, sums[i][0]);
                sums[i][1] = dot_high(pair, word, sums[i][1]);
            }
        } else {  // low and high bytes of two components
            for (int i = 0; i < NUM; ++i) {
                const u32 here = word_of(row + next[i], 4 * at, num_bytes, is_aligned);
                const u32 there = word_of(row + next[i], 4 * at + 4, num_bytes, is_aligned);
                const u32 cb = __byte_perm(here, there, 0x5140), cr = __byte_perm(here, there, 0x7362);
                sums[i][0] = dot_low(pair, cb, sums[i][0]);
                sums[i][1] = dot_high(pair, cb, sums[i][1]);
                sums[i][2] = dot_low(pair, cr, sums[i][2]);
                sums[i][3] = dot_high(pair, cr, sums[i][3]);
            }
        }
    }
    const float share = 1.0f / (float)sum;
    for (int i = 0; i < NUM; ++i) {
        for (int c = 0; c < COMPONENTS; ++c) {
            const float low = (float)sums[i][c * SAMPLE_BYTES];
            means[i][c] = share * (SAMPLE_BYTES == 1 ? low : low + 256.0f * (float)sums[i][(c + 1) * SAMPLE_BYTES - 1]);
        }
    }
}

// Ask for all that a tile needs of a plane at once, a line of 128 bytes a thread: what is summed later waits no longer.
FUNCTION void fetch_rows(const Plane &plane, const Tile &tile, const Span &rows, int bytes, int thread) {
    const Span columns = span_of(plane.x, tile.u, tile.num_u);
    const u8 *corner = plane.samples + rows.first * plane.pitch + columns.first * bytes;
    for (int row = thread >> 2; row < rows.num; row += THREADS >> 2) {
        for (int at = (thread & 3) * 128; at < columns.num * bytes; at += 512) fetch(corner + row * plane.pitch + at);
    }
}

template <int SAMPLE_BYTES>
FUNCTION void hold_rows(const Picture &picture, const Tile &tile, int thread, u8 *shared) {
    const int u = thread & ((1 << tile.log2_u) - 1), num_at_once = THREADS >> tile.log2_u;
    enum { CHROMA_ROWS = ROWS / SAMPLE_BYTES };  // as many sums as of luma, or registers run out
    const int num_luma = (tile.luma.num + ROWS - 1) / ROWS;
    const int num_chroma = (tile.chroma.num + CHROMA_ROWS - 1) / CHROMA_ROWS;
    if (u >= tile.num_u) return;
    const Taps luma_taps = taps_of(picture.luma.x, tile.u + u), chroma_taps = taps_of(picture.chroma.x, tile.u + u);
    float *luma = luma_of(tile, shared) + u;
    Pair *chroma = chroma_of(tile, shared) + u;
    for (int group = thread >> tile.log2_u; group < num_luma + num_chroma; group += num_at_once) {
        if (group < num_luma) {
            const int row = group * ROWS, first = tile.luma.first + row, last = tile.luma.first + tile.luma.num - 1;
            float means[ROWS][1];
            means_of<SAMPLE_BYTES, 1, ROWS>(picture.luma, luma_taps, first, last, means);
            for (int i = 0; i < ROWS; ++i) {
                if (first + i <= last) luma[(row + i) * tile.pitch] = means[i][0];
            }
        } else {
            const int row = (group - num_luma) * CHROMA_ROWS, first = tile.chroma.first + row;
            const int last = tile.chroma.first + tile.chroma.num - 1;
            float means[CHROMA_ROWS][2];
            means_of<SAMPLE_BYTES, 2, CHROMA_ROWS>(picture.chroma, chroma_taps, first, last, means);
            for (int i = 0; i < CHROMA_ROWS; ++i) {
                if (first + i <= last) chroma[(row + i) * tile.pitch] = {means[i][0], means[i][1]};
            }
        }
    }
}

FUNCTION void filter_rows(const Picture &picture, const Tile &tile, int thread, u8 *shared) {
    if (!tile.is_held) return;  // or nothing is shown
    fetch_rows(picture.luma, tile, tile.luma, picture.sample_bytes, thread);
    fetch_rows(picture.chroma, tile, tile.chroma, 2 * picture.sample_bytes, thread);
    if (picture.sample_bytes == 1) {
        hold_rows<1>(picture, tile, thread, shared);
    } else {
        hold_rows<2>(picture, tile, thread, shared);
    }
}

// --- sums down columns, colour, storing ----------------------------------------------------------------------------

// The weighted mean of `row_at(k)`, the k-th row an output takes; so many are under way at once.
template <int NUM_AT_ONCE, typename Row>
FUNCTION Pair mean_down(const Axis &axis, const Taps &taps, const Row &row_at) {
    Pair total = {0, 0};
    float sum = 0;
#pragma unroll NUM_AT_ONCE
    for (int k = 0; k < taps.end - taps.first; ++k) {
        const float share = fmaxf(1.0f - fabsf(taps.offset + (float)k) * axis.slope, 0.0f);
        const Pair row = row_at(k);
        sum += share;
        total.cb += share * row.cb;
        total.cr += share * row.cr;
    }
    return {total.cb / sum, total.cr / sum};
}

FUNCTION Sample held(const Picture &picture, const Tile &tile, int u, int v, u8 *shared) {
    const int pitch = tile.pitch;
    const Taps down = taps_of(picture.luma.y, v);
    const float *luma = luma_of(tile, shared) + (down.first - tile.luma.first) * pitch + u - tile.u;
    const Pair y = mean_down<4>(picture.luma.y, down, [=](int k) { return Pair{luma[k * pitch], 0}; });
    const Taps later = taps_of(picture.chroma.y, v);
    const Pair *chroma = chroma_of(tile, shared) + (later.first - tile.chroma.first) * pitch + u - tile.u;
    const Pair c = mean_down<4>(picture.chroma.y, later, [=](int k) { return chroma[k * pitch]; });
    return {y.cb, c.cb, c.cr};
}

template <int SAMPLE_BYTES, int COMPONENTS>
FUNCTION Pair summed(const Plane &plane, int u, int v) {
    const Taps across = taps_of(plane.x, u), down = taps_of(plane.y, v);
    return mean_down<1>(plane.y, down, [&](int k) {
        float mean[1][COMPONENTS];
        means_of<SAMPLE_BYTES, COMPONENTS, 1>(plane, across, down.first + k, down.first + k, mean);
        return Pair{mean[0][0], mean[0][COMPONENTS - 1]};
    });
}

FUNCTION Sample summed(const Picture &picture, int u, int v) {
    const bool is_8 = picture.sample_bytes == 1;
    const Pair y = is_8 ? summed<1, 1>(picture.luma, u, v) : summed<2, 1>(picture.luma, u, v);
    const Pair c = is_8 ? summed<1, 2>(picture.chroma, u, v) : summed<2, 2>(picture.chroma, u, v);
    return {y.cb, c.cb, c.cr};
}

FUNCTION u16 bfloat16_of(float value) {  // to nearest even; the instruction for it is not on every device
    return (u16)((bits_of(value) + 0x7FFF + (bits_of(value) >> 16 & 1)) >> 16);
}

FUNCTION void store(void *out, i64 at, float value, int dtype) {
    if (dtype == FLOAT32) ((float *)out)[at] = value;
    if (dtype == FLOAT16) ((u16 *)out)[at] = float16_of(value);
    if (dtype == BFLOAT16) ((u16 *)out)[at] = bfloat16_of(value);
}

FUNCTION float clipped(float value) { return fminf(fmaxf(value, 0.0f), 255.0f); }

FUNCTION void finish(const Picture &picture, const Target &target, const Tile &tile, const Place &place,
                     int log2_height, void *out, u8 *shared) {
    for (int i = place.thread; i < TILE_WIDTH << log2_height; i += THREADS) {
        const int x = tile.x + (i & (TILE_WIDTH - 1)), y = tile.y + (i >> LOG2_TILE_WIDTH);
        if (x >= target.width || y >= target.height) continue;
        const int shown_x = x - picture.left, shown_y = y - picture.top;
        float out_of[3] = {target.pad[0], target.pad[1], target.pad[2]};
        if (0 <= shown_x && shown_x < picture.width && 0 <= shown_y && shown_y < picture.height) {
            const int u = column_of(picture, shown_x, shown_y), v = row_of(picture, shown_x, shown_y);
            const Sample sample = tile.is_held ? held(picture, tile, u, v, shared) : summed(picture, u, v);
            const float y_part = picture.y * sample.y;
            const float red = y_part + picture.red_cr * sample.cr + picture.red;
            const float green = y_part + picture.green_cb * sample.cb + picture.green_cr * sample.cr + picture.green;
            const float blue = y_part + picture.blue_cb * sample.cb + picture.blue;
            out_of[0] = clipped(red) * target.gain[0] + target.bias[0];
            out_of[1] = clipped(green) * target.gain[1] + target.bias[1];
            out_of[2] = clipped(blue) * target.gain[2] + target.bias[2];
        }
        const i64 at = place.block_z * target.picture_stride + y * target.row_stride + x * target.pixel_stride;
        for (int c = 0; c < 3; ++c) store(out, at + target.channel[c], out_of[c], target.dtype);
    }
}

// --- the kernel, and the same on a host ----------------------------------------------------------------------------

#ifdef __CUDACC__
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    prepare(const Picture *__restrict__ pictures, const Target *__restrict__ target, void *out, int log2_height,
            int shared_bytes) {
    extern __shared__ __align__(16) u8 shared[];
    const Place place = {(int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z, (int)threadIdx.x};
    const Picture &picture = pictures[place.block_z];
    __shared__ Tile tile;
    if (place.thread == 0) tile = tile_of(picture, place, log2_height, shared_bytes);
    __syncthreads();
    filter_rows(picture, tile, place.thread, shared);
    __syncthreads();
    finish(picture, *target, tile, place, log2_height, out, shared);
}
#else
extern "C" void prepare(const Picture *pictures, const Target *target, void *out, int log2_height, int shared_bytes,
                        int num_x, int num_y, int num_z) {
    for (int block = 0; block < num_x * num_y * num_z; ++block) {
        u8 *shared = new u8[shared_bytes];  // a block's own, so that a sanitizer sees what is outside it
        const Picture &picture = pictures[block / (num_x * num_y)];
        Place place = {block % num_x, block / num_x % num_y, block / (num_x * num_y), 0};
        const Tile tile = tile_of(picture, place, log2_height, shared_bytes);
        for (int thread = 0; thread < THREADS; ++thread) filter_rows(picture, tile, thread, shared);
        for (; place.thread < THREADS; ++place.thread) finish(picture, *target, tile, place, log2_height, out, shared);
        delete[] shared;
    }
}
#endif
