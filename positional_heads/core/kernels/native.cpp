// D of every query-key pair (an "entry") of one head, binned and summed, within one core's cache.
//
// With g_i the contribution of rotary pair i to q . k, an entry has D = sum_i i w_i / sum_i w_i, w_i = exp(g_i / T).
// The plain expression would store T x T x pairs values three times over. Here, for N queries and 16 keys at a time:
//   1. contributions g_i = q[2i] k[2i] + q[2i+1] k[2i+1] of all pairs, with their maximum;
//   2. weights relative to the maximum, their sum and index-weighted sum, and so D;
//   3. the bin of D, and integer sums over entries; D itself is discarded.
// Between steps 1 and 2 contributions stay in a buffer of a few KiB; only keys are read from memory.
//
// Why it is fast, in the order of the code:
// - Queries arrive multiplied by log2(e) / T. A weight is then 2^x: an exponent shift and a short polynomial.
// - Vectors run along keys, laid out [block][pair][2][16]: neighbours in memory, one load per channel, no shuffles.
//   A list of entries has no such neighbours, so listed_entries multiplies along channels and transposes.
// - A few queries share each load of keys (QUERIES), as many as the registers hold.
// - If no contribution can exceed 100, by Cauchy-Schwarz, 2^x cannot overflow: then neither maximum nor buffer is
//   needed, and steps 1 and 2 are one loop (bounded_dominant).
// - An entry is counted in the cell of its D that the resolution ties, by arithmetic alone; cells are added up to bins
//   seldom. Where cells do not make up bins, a table finds the bin of each entry (fold_values).
// - Sums are integers in fixed point: any split over threads and any order gives the same numbers.
// - Rank and count of an entry are added as one number (Counts).
//
// One source serves AVX-512, AVX2, SSE2 and Arm: vectors are the compiler's own (GCC, Clang). Only two functions are
// exported, in C.

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int KEYS = 16;      // keys of a block, and entries of a list taken at a time
constexpr int CELLS = 65536;  // as in binning.BinLookup
constexpr float SATURATED = 0.999f;  // as in tiled.py
#if defined(__AVX512F__)
constexpr int LANES = 16, QUERIES = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, QUERIES = 2;
#else
constexpr int LANES = 4, QUERIES = 1;
#endif
constexpr int VECTORS = KEYS / LANES, PAIRS = 2 * QUERIES;

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* from) {
    Vector vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
}

// 2^x for -126 <= x < 127, relative error about 2e-7: 2^round(x) by shifting an integer into the exponent bits, the
// rest, within half of zero, by a minimax polynomial. NaN remains NaN, and is refused when it is binned.
inline Vector power_of_two(Vector x) {
    const Vector shifter = Vector{} + (12582912.0f + 127.0f);  // 1.5 * 2^23 rounds to integers; 127 biases exponents
    const Vector shifted = x + shifter;
    const Vector rest = x - (shifted - shifter);
    Vector power = Vector{} + 1.327648815e-3f;
    power = power * rest + 9.675541246e-3f;
    power = power * rest + 5.550713223e-2f;
    power = power * rest + 2.402211973e-1f;
    power = power * rest + 6.931469671e-1f;
    power = power * rest + 1.000000072f;
    return power * (Vector)((Integers)shifted << 23);
}

// D of as many entries as a vector has lanes; and -1, a vector's true, where one rotary pair holds the softmax.
struct Dominant {
    Vector d;
    Integers saturated;
};

// The largest contributions so far, and the indices of their rotary pairs.
struct Largest {
    Vector value, index;
    inline void update(const Vector& contribution, float pair) {
        index = value < contribution ? Vector{} + pair : index;
        value = value < contribution ? contribution : value;
    }
};
const Largest NONE = {Vector{} - __builtin_inff(), Vector{}};

// D from contributions[pair][n] and the largest, as its index plus the mean deviation from it: where one pair holds
// nearly all of the softmax, the small weights of the others would be lost in a sum with its index.
template <int N>
inline void weigh(const Vector* contributions, int64_t pairs, const Largest* largest, Dominant* dominant) {
    Vector total[N], weighted[N];
    for (int n = 0; n < N; n++) total[n] = weighted[n] = Vector{};
    const Vector least = Vector{} - 126.0f;  // the limit of power_of_two; negligible next to the largest weight, 1
    float index = 0;
    for (int64_t pair = 0; pair < pairs; pair++, index += 1) {
        for (int n = 0; n < N; n++) {
            const Vector below = contributions[pair * N + n] - largest[n].value;
            const Vector weight = power_of_two(below < least ? least : below);
            total[n] += weight;
            weighted[n] += weight * (index - largest[n].index);
        }
    }
    for (int n = 0; n < N; n++) dominant[n] = {largest[n].index + weighted[n] / total[n], total[n] * SATURATED < 1.0f};
}

}  // namespace

extern "C" {

// One head: its inputs, and where its sums are added. Mirrored by _Head in native.py.
struct Head {
    const float* query;  // [pos][pair][2], scaled; listed_entries: pairs padded to a multiple of 4
    const float* key;    // every_entry: [block][pair][2][16]; listed_entries: as queries
    int64_t pairs;
    const float* longest;    // [pair]: largest sum of squares of a key's two channels; every_entry only
    const float* edges;      // of bins of D, ascending, and infinity
    const uint16_t* starts;  // edges below each cell, and at the end all edges: CELLS + 1
    float low, scale;        // cell = (D - low) * scale
    int64_t distances;
    const uint64_t* ranks;    // [distance, largest first]: the rank times 2^16, and 1
    int64_t* histogram;       // [bin][2]: entries and rank sum
    int64_t* dimension_sums;  // [distance, largest first], in steps of 2^-24
    int64_t* saturated;       // one number: entries in which one rotary pair holds the softmax
    float* dominant;          // D itself, or null: [query][16 * blocks] or [listed]; for the pilot and tests
    int64_t row;              // length of a row of `dominant`
    const uint16_t* bins;     // [cell]: bin of every cell of the resolution, or null: each bin is a cell
    int64_t cells;            // how many
    float per_index;          // cells from one pair's index to the next
};

}  // extern "C"

namespace {

// How many entries fell into each cell, and the sum of the ranks of their distances times 2^16, in one number: ranks are
// at most 2^31, so 2^16 - 1 entries fit.
struct Counts {
    const Head& head;
    uint64_t* cells;
    int64_t room = 65535;

    // Makes room for one more block; `add` takes a bin, its entries and their ranks.
    template <class Add>
    inline void reserve(const Add& add) {
        if ((room -= KEYS) >= 0) return;
        flush(add);
        room -= KEYS;
    }
    template <class Add>
    void flush(const Add& add) {
        for (int64_t cell = 0; cell < head.cells; cell++) {
            if (!cells[cell]) continue;
            add(head.bins ? head.bins[cell] : cell, (int64_t)(cells[cell] & 65535), (int64_t)(cells[cell] >> 16));
            cells[cell] = 0;
        }
        room = 65535;
    }
};

struct Folded {
    int32_t cell[KEYS];
    int64_t fixed[KEYS];
};

// Cells of values and edges come from the same monotone float32 arithmetic as in PyTorch (a difference, then a product:
// nothing that a compiler could contract), so only the edges in the value's own cell need comparing. Few cells hold an
// edge and hardly any more than one: the first is compared without a branch, the others are searched.
inline int32_t bin_of(const Head& head, int32_t cell, float dominant) {
    int32_t bin = head.starts[cell];
    bin += head.edges[bin] < dominant;
    if (__builtin_expect(head.edges[bin] < dominant, 0)) {
        int32_t last = head.starts[cell + 1];
        while (bin < last) {
            const int32_t middle = (bin + last) / 2;
            if (head.edges[middle] < dominant) {
                bin = middle + 1;
            } else {
                last = middle;
            }
        }
    }
    return bin;
}

// Cells to count in, and D in steps of 2^-24. A value between two cells, which are a power of two to an index, belongs to
// the lower one; all of this is exact, and agrees with the bins' edges, which lie between cells.
inline void fold_values(const Head& head, const float* dominant, Folded& folded) {
    if (head.bins) {
        for (int lane = 0; lane < KEYS; lane++) {
            const float most = head.cells - 1, above = dominant[lane] * head.per_index - 0.5f;
            float at = above > 0 ? above : 0;
            at = at < most ? at : most;
            const int32_t whole = (int32_t)at;
            folded.cell[lane] = whole + ((float)whole < at);
        }
    } else {
        int32_t cell[KEYS];
        for (int lane = 0; lane < KEYS; lane++) {
            float at = (dominant[lane] - head.low) * head.scale;
            at = at > 0 ? at : 0;
            cell[lane] = (int32_t)(at < CELLS - 1 ? at : CELLS - 1);
        }
        for (int lane = 0; lane < KEYS; lane++) folded.cell[lane] = bin_of(head, cell[lane], dominant[lane]);
    }
    const double shifter = 6755399441055744.0;  // 1.5 * 2^52 rounds halves to even, as torch.round does
    int64_t bits;
    std::memcpy(&bits, &shifter, sizeof(bits));
    for (int lane = 0; lane < KEYS; lane++) {
        const double shifted = dominant[lane] * 16777216.0 + shifter;
        std::memcpy(&folded.fixed[lane], &shifted, sizeof(shifted));
        folded.fixed[lane] -= bits;
    }
}

// Adds one lane at its index in the sums by distance; returns whether D is not finite.
inline bool add_lane(Counts& counts, const float* dominant, const Folded& folded, int lane, int64_t index) {
    counts.head.dimension_sums[index] += folded.fixed[lane];
    counts.cells[folded.cell[lane]] += counts.head.ranks[index];
    return !(dominant[lane] - dominant[lane] == 0);
}

// Adds to the sums that a head was given.
struct InHistogram {
    const Head& head;
    inline void operator()(int64_t bin, int64_t entries, int64_t ranks) const {
        head.histogram[2 * bin] += entries;
        head.histogram[2 * bin + 1] += ranks;
    }
};

// D and saturation in the order of keys, or of the list.
struct Lanes {
    float d[KEYS];
    int32_t saturated[KEYS];
    explicit Lanes(const Dominant* dominant) {
        for (int vector = 0; vector < VECTORS; vector++) {
            std::memcpy(d + vector * LANES, &dominant[vector].d, sizeof(Vector));
            std::memcpy(saturated + vector * LANES, &dominant[vector].saturated, sizeof(Integers));
        }
    }
    int64_t count(int from, int to) const {
        int32_t sum = 0;
        for (int lane = from; lane < to; lane++) sum -= saturated[lane];
        return sum;
    }
};

// Adds the lanes from `from` to `to` of one query and one block of keys; `index` is that of lane 0 in the sums by
// distance. A whole block takes loops of fixed length, which the compiler unrolls.
inline bool add_block(Counts& counts, const Lanes& lanes, int64_t index, int from, int to) {
    const Head& head = counts.head;
    const float* dominant = lanes.d;
    Folded folded;
    fold_values(head, dominant, folded);
    counts.reserve(InHistogram{head});
    *head.saturated += to - from < KEYS ? lanes.count(from, to) : lanes.count(0, KEYS);
    int bad = 0;
    if (to - from < KEYS) {
        for (int lane = from; lane < to; lane++) bad |= add_lane(counts, dominant, folded, lane, index + lane);
        return bad;
    }
    for (int lane = 0; lane < KEYS; lane++) head.dimension_sums[index + lane] += folded.fixed[lane];
    for (int lane = 0; lane < KEYS; lane++) bad |= !(dominant[lane] - dominant[lane] == 0);
    for (int lane = 0; lane < KEYS; lane++) counts.cells[folded.cell[lane]] += head.ranks[index + lane];
    return bad;
}

typedef float Four __attribute__((vector_size(16)));

inline Four load_four(const float* from) {
    Four four;
    std::memcpy(&four, from, sizeof(four));
    return four;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(x, y, a, b, c, d) __builtin_shufflevector(x, y, a, b, c, d)
#else
typedef int32_t FourIntegers __attribute__((vector_size(16)));
#define SHUFFLED(x, y, a, b, c, d) __builtin_shuffle(x, y, FourIntegers{a, b, c, d})
#endif

inline void transpose(Four* rows) {
    const Four a = SHUFFLED(rows[0], rows[1], 0, 4, 1, 5), b = SHUFFLED(rows[0], rows[1], 2, 6, 3, 7);
    const Four c = SHUFFLED(rows[2], rows[3], 0, 4, 1, 5), d = SHUFFLED(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = SHUFFLED(a, c, 0, 1, 4, 5), rows[1] = SHUFFLED(a, c, 2, 3, 6, 7);
    rows[2] = SHUFFLED(b, d, 0, 1, 4, 5), rows[3] = SHUFFLED(b, d, 2, 3, 6, 7);
}

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// D of N queries with one block of keys.
template <int N>
inline void block_dominant(const Head& head, int64_t query, const float* key, Vector* buffer, Dominant* dominant) {
    Largest largest[N * VECTORS];
    for (int n = 0; n < N * VECTORS; n++) largest[n] = NONE;
    const float* queries = head.query + query * 2 * head.pairs;
    for (int64_t pair = 0; pair < head.pairs; pair++) {
        for (int vector = 0; vector < VECTORS; vector++) {
            const Vector a = load(key + pair * 2 * KEYS + vector * LANES);
            const Vector b = load(key + pair * 2 * KEYS + KEYS + vector * LANES);
            for (int n = 0; n < N; n++) {
                const float* q = queries + (n * head.pairs + pair) * 2;
                const int slot = n * VECTORS + vector;
                const Vector contribution = q[0] * a + q[1] * b;
                largest[slot].update(contribution, pair);
                buffer[pair * N * VECTORS + slot] = contribution;
            }
        }
    }
    weigh<N * VECTORS>(buffer, head.pairs, largest, dominant);
}

// The same where contributions are `bounded`: in one loop, without maxima or a buffer.
template <int N>
inline void bounded_dominant(const Head& head, int64_t query, const float* key, Dominant* dominant) {
    Vector total[N * VECTORS], weighted[N * VECTORS], largest[N * VECTORS];
    for (int n = 0; n < N * VECTORS; n++) total[n] = weighted[n] = largest[n] = Vector{};
    const float* queries = head.query + query * 2 * head.pairs;
    float index = 0;
    for (int64_t pair = 0; pair < head.pairs; pair++, index += 1) {
        for (int vector = 0; vector < VECTORS; vector++) {
            const Vector a = load(key + pair * 2 * KEYS + vector * LANES);
            const Vector b = load(key + pair * 2 * KEYS + KEYS + vector * LANES);
            for (int n = 0; n < N; n++) {
                const float* q = queries + (n * head.pairs + pair) * 2;
                const Vector weight = power_of_two(q[0] * a + q[1] * b);
                const int slot = n * VECTORS + vector;
                total[slot] += weight;
                weighted[slot] += weight * index;
                largest[slot] = largest[slot] < weight ? weight : largest[slot];
            }
        }
    }
    for (int n = 0; n < N * VECTORS; n++) dominant[n] = {weighted[n] / total[n], total[n] * SATURATED < largest[n]};
}

// Whether no contribution of these queries can exceed 100, by Cauchy-Schwarz: 2^100 times 2^13 pairs times their
// index still fits into a float.
inline bool bounded(const Head& head, int64_t query, int queries) {
    int small = head.pairs < 8192;
    for (int n = 0; n < queries; n++) {
        const float* q = head.query + (query + n) * 2 * head.pairs;
        for (int64_t pair = 0; pair < head.pairs; pair++) {
            small &= (q[2 * pair] * q[2 * pair] + q[2 * pair + 1] * q[2 * pair + 1]) * head.longest[pair] <= 1e4f;
        }
    }
    return small;
}

struct Limits {
    int64_t nearest, furthest, skip_keys;
};

// N queries with all their keys that count.
template <int N>
bool add_queries(Counts& counts, int64_t query, const Limits& limits, Vector* buffer) {
    const Head& head = counts.head;
    const int64_t first = larger(limits.skip_keys, query - limits.furthest), last = query + N - 1 - limits.nearest;
    bool bad = false;
    if (last < first) return bad;
    const bool small = bounded(head, query, N);
    for (int64_t block = first / KEYS; block <= last / KEYS; block++) {
        Dominant dominant[N * VECTORS];
        const float* keys = head.key + block * head.pairs * 2 * KEYS;
        if (small) {
            bounded_dominant<N>(head, query, keys, dominant);
        } else {
            block_dominant<N>(head, query, keys, buffer, dominant);
        }
        for (int n = 0; n < N; n++) {
            const Lanes lanes(dominant + n * VECTORS);
            const int64_t own = query + n, key = block * KEYS;
            const int64_t from = larger(larger(limits.skip_keys, own - limits.furthest) - key, 0);
            const int64_t to = smaller(own - limits.nearest + 1 - key, KEYS);
            if (from < to) bad |= add_block(counts, lanes, head.distances - 1 - own + key, from, to);
            if (head.dominant) std::memcpy(head.dominant + own * head.row + key, lanes.d, sizeof(lanes.d));
        }
    }
    return bad;
}

// Memory of a call. Of shuffled content: queries of one head as [block][pair][2][16]; its keys as [block][pair][2][32],
// where each block repeats the next one, so that any 16 neighbours are read at once, and block 0 lies before the sequence.
struct Workspace {
    float *query, *key;
    uint64_t* cells;
};

// All in one allocation, which begins with the queries; null if there is no memory.
inline Workspace allocated(int64_t queries, int64_t keys, int64_t cells) {
    const int64_t floats = (queries + keys + KEYS - 1) / KEYS * KEYS, counts = (cells + 7) / 8 * 8;
    float* all = (float*)std::aligned_alloc(64, sizeof(float) * floats + sizeof(uint64_t) * counts);
    if (all) std::memset(all + floats, 0, sizeof(uint64_t) * counts);
    return {all, all + queries, (uint64_t*)(all + floats)};
}

constexpr int FINITE = 0, NOT_FINITE = 1, NO_MEMORY = 2;

}  // namespace

extern "C" {

// Adds the entries of queries `from` to `to` with all keys at distances nearest to furthest, without the first
// skip_keys.
int every_entry(const Head* head, int64_t from, int64_t to, int64_t nearest, int64_t furthest, int64_t skip_keys) {
    const Workspace space = allocated(KEYS * QUERIES * head->pairs, 0, head->cells);
    if (!space.query) return NO_MEMORY;
    Vector* buffer = (Vector*)space.query;
    Counts counts = {*head, space.cells};
    const Limits limits = {nearest, furthest, skip_keys};
    bool bad = false;
    int64_t query = from;
    for (; query + QUERIES <= to; query += QUERIES) bad |= add_queries<QUERIES>(counts, query, limits, buffer);
    for (; query < to; query++) bad |= add_queries<1>(counts, query, limits, buffer);
    counts.flush(InHistogram{*head});
    std::free(space.query);
    return bad ? NOT_FINITE : FINITE;
}

// Adds n listed entries: contributions along channels, transposed four by four, since sums over pairs need vectors along the list.
int listed_entries(const Head* head, const int64_t* query_pos, const int64_t* key_pos, int64_t n) {
    const int64_t pairs = head->pairs, padded = (pairs + 3) / 4 * 4;
    const Workspace space = allocated(KEYS * padded, 0, head->cells);
    if (!space.query) return NO_MEMORY;
    float* buffer = space.query;
    Counts counts = {*head, space.cells};
    bool bad = false;
    for (int64_t start = 0; start < n; start += KEYS) {
        const int taken = (int)smaller(n - start, KEYS);
        for (int lane = 0; lane < KEYS; lane += 4) {
            const float *query[4], *key[4];
            for (int n = 0; n < 4; n++) {
                const int64_t listed = smaller(start + lane + n, start + taken - 1);
                query[n] = head->query + query_pos[listed] * 2 * padded;
                key[n] = head->key + key_pos[listed] * 2 * padded;
            }
            for (int64_t pair = 0; pair < padded; pair += 4) {
                Four rows[4];
                for (int n = 0; n < 4; n++) {
                    const Four low = load_four(query[n] + 2 * pair) * load_four(key[n] + 2 * pair);
                    const Four high = load_four(query[n] + 2 * pair + 4) * load_four(key[n] + 2 * pair + 4);
                    rows[n] = SHUFFLED(low, high, 0, 2, 4, 6) + SHUFFLED(low, high, 1, 3, 5, 7);
                }
                transpose(rows);
                for (int n = 0; n < 4; n++) std::memcpy(buffer + (pair + n) * KEYS + lane, &rows[n], sizeof(Four));
            }
        }
        Largest largest[VECTORS];
        Dominant dominant[VECTORS];
        const Vector* contributions = (const Vector*)buffer;
        for (int vector = 0; vector < VECTORS; vector++) largest[vector] = NONE;
        for (int64_t pair = 0; pair < pairs; pair++) {
            for (int vector = 0; vector < VECTORS; vector++) {
                largest[vector].update(contributions[pair * VECTORS + vector], pair);
            }
        }
        weigh<VECTORS>(contributions, pairs, largest, dominant);
        const Lanes lanes(dominant);
        Folded folded;
        fold_values(*head, lanes.d, folded);
        counts.reserve(InHistogram{*head});
        *head->saturated += lanes.count(0, taken);
        for (int lane = 0; lane < taken; lane++) {
            const int64_t index = head->distances - 1 - query_pos[start + lane] + key_pos[start + lane];
            bad |= add_lane(counts, lanes.d, folded, lane, index);
        }
        if (head->dominant) std::memcpy(head->dominant + start, lanes.d, sizeof(float) * taken);
    }
    counts.flush(InHistogram{*head});
    std::free(space.query);
    return bad ? NOT_FINITE : FINITE;
}

// One layer and sequence, and the sums of all its shuffles. Mirrored by _Shuffled in native.py.
struct Shuffled {
    const float* query;        // [head][pos][padded][2], scaled, before rotation; pairs padded to an even number
    const float* key;          // [key head][pos][padded][2]
    const float* query_phase;  // [head or 1][block of 16 positions][padded][2][16]: cosines and sines
    const float* key_phase;    // [key head or 1][...]
    int64_t pairs, padded, length, heads, key_heads, query_phases, key_phases;  // heads of each; phases may have one
    const int64_t* order;  // [shuffle][pos]: position whose content each position gets
    const int64_t* runs;   // [run][2]: positions of the first query and key
    const int64_t* first;  // [shuffle][half], and one more: number of the first run
    int64_t halves, skip_keys;
    const float* edges;      // as in Head, [head][bins]
    const uint16_t* starts;  // [head][CELLS + 1]
    const float *low, *scale;
    const uint16_t* cell_bins;
    int64_t cells, bins, coarse, distances;
    const uint64_t* ranks;                   // [distance], nearest first, as in Head
    int64_t *entries, *rank_sums;            // [shuffle][head][bin]
    int64_t* dimension_sums;                 // [shuffle][head][distance], nearest first
    int64_t *half_entries, *half_rank_sums;  // [shuffle][half][head][coarse]
    float per_index;
};

}  // extern "C"

namespace {

// Content at its new positions, rotated there: a block of 16 positions, [pair][2][16] with `row` floats to the next
// channel. Rows of the input are gathered four channels at a time and transposed.
inline void rotate_block(const float* content, const float* phase, const int64_t* order, int64_t block, int64_t length,
                         int64_t padded, float* rotated, int64_t row) {
    const float* rows[KEYS];
    for (int lane = 0; lane < KEYS; lane++) {
        rows[lane] = content + order[smaller(block * KEYS + lane, length - 1)] * 2 * padded;
    }
    for (int64_t pair = 0; pair < padded; pair += 2) {
        alignas(64) float channel[4][KEYS];
        for (int lane = 0; lane < KEYS; lane += 4) {
            Four four[4];
            for (int n = 0; n < 4; n++) four[n] = load_four(rows[lane + n] + 2 * pair);
            transpose(four);
            for (int n = 0; n < 4; n++) std::memcpy(channel[n] + lane, &four[n], sizeof(Four));
        }
        for (int n = 0; n < 2; n++) {
            const float *a = channel[2 * n], *b = channel[2 * n + 1], *turn = phase + (pair + n) * 2 * KEYS;
            float* to = rotated + (pair + n) * 2 * row;
            for (int lane = 0; lane < KEYS; lane++) {
                const float cosine = turn[lane], sine = turn[KEYS + lane];
                to[lane] = a[lane] * cosine - b[lane] * sine;
                to[row + lane] = a[lane] * sine + b[lane] * cosine;
            }
        }
    }
}

template <int N>
inline void add_pairs(const float* query, const float* key, float index, Vector& largest, Vector& total,
                      Vector& weighted) {
    Vector contribution[N];
    Vector now = largest;
    for (int n = 0; n < N; n++) {
        const float *q = query + n * 2 * KEYS, *k = key + n * 4 * KEYS;
        contribution[n] = load(q) * load(k) + load(q + KEYS) * load(k + 2 * KEYS);
        now = now < contribution[n] ? contribution[n] : now;
    }
    const Vector least = Vector{} - 126.0f;  // the limit of power_of_two; negligible next to the largest weight, 1
    const Vector fallen = largest - now, scale = power_of_two(least > fallen ? least : fallen);
    largest = now;
    total *= scale;
    weighted *= scale;
    for (int n = 0; n < N; n++) {
        const Vector below = contribution[n] - now;
        const Vector weight = power_of_two(least > below ? least : below);
        total += weight;
        weighted += weight * (index + n);
    }
}

// D of one run: 16 queries, each with its own key. A few pairs at a time stay in registers; where they raise the maximum,
// the sums so far are scaled down to it.
inline void run_dominant(const float* query, const float* key, int64_t pairs, Dominant* dominant) {
    for (int vector = 0; vector < VECTORS; vector++, query += LANES, key += LANES) {
        Vector largest = Vector{} - __builtin_inff(), total = {}, weighted = {};
        float index = 0;
        int64_t pair = 0;
        for (; pair + PAIRS <= pairs; pair += PAIRS) {
            add_pairs<PAIRS>(query + pair * 2 * KEYS, key + pair * 4 * KEYS, index, largest, total, weighted);
            index += PAIRS;
        }
        for (; pair < pairs; pair++, index += 1) {
            add_pairs<1>(query + pair * 2 * KEYS, key + pair * 4 * KEYS, index, largest, total, weighted);
        }
        dominant[vector] = {weighted / total, total * SATURATED < 1.0f};
    }
}

// Adds to half of one shuffle of one head.
struct InHalf {
    int64_t *entries, *rank_sums, *half_entries, *half_rank_sums, width;  // bins of a coarse one
    inline void operator()(int64_t bin, int64_t entries_, int64_t ranks) const {
        entries[bin] += entries_;
        rank_sums[bin] += ranks;
        half_entries[bin / width] += entries_;
        half_rank_sums[bin / width] += ranks;
    }
};

// Adds the entries of one run that count; returns whether a D is not finite.
inline bool add_run(const Shuffled& layer, Counts& counts, const Dominant* dominant, int64_t query, int64_t key) {
    const Lanes lanes(dominant);
    Folded folded;
    fold_values(counts.head, lanes.d, folded);
    const int from = (int)larger(layer.skip_keys - key, 0), to = (int)smaller(layer.length - query, KEYS);
    const uint64_t entry = layer.ranks[query - key];
    int64_t sum = 0;
    int bad = 0;
    if (from == 0 && to == KEYS) {
        for (int lane = 0; lane < KEYS; lane++) sum += folded.fixed[lane];
        for (int lane = 0; lane < KEYS; lane++) bad |= !(lanes.d[lane] - lanes.d[lane] == 0);
        for (int lane = 0; lane < KEYS; lane++) counts.cells[folded.cell[lane]] += entry;
    } else {
        for (int lane = from; lane < to; lane++) {
            sum += folded.fixed[lane];
            bad |= !(lanes.d[lane] - lanes.d[lane] == 0);
            counts.cells[folded.cell[lane]] += entry;
        }
    }
    counts.head.dimension_sums[query - key] += sum;
    return bad;
}

inline bool add_runs(const Shuffled& layer, Counts& counts, const InHalf& sums, const Workspace& space, int64_t first,
                     int64_t last) {
    bool bad = false;
    for (int64_t run = first; run < last; run++) {
        const int64_t query = layer.runs[2 * run], key = layer.runs[2 * run + 1];
        const int64_t at = key + KEYS;  // from the block before the sequence
        Dominant dominant[VECTORS];
        run_dominant(space.query + query * 2 * layer.padded,
                     space.key + at / KEYS * 4 * KEYS * layer.padded + at % KEYS, layer.pairs, dominant);
        counts.reserve(sums);
        bad |= add_run(layer, counts, dominant, query, key);
    }
    counts.flush(sums);
    return bad;
}

}  // namespace

extern "C" {

// Adds the runs of one shuffle to the sums of query heads `from` to `to`, which share one key head. Returns 0, -1 if there
// is no memory, or one more than the number of a head whose D is not finite.
int shuffled_runs(const Shuffled* given, int64_t shuffle, int64_t from, int64_t to) {
    const Shuffled& layer = *given;
    const int64_t blocks = (layer.length + KEYS - 1) / KEYS, side = blocks * KEYS * 2 * layer.padded;
    const int64_t row = 4 * KEYS * layer.padded;  // floats of a block of keys
    const int64_t* order = layer.order + shuffle * layer.length;
    const Workspace space = allocated(side, (blocks + 1) * row, layer.cells);
    if (!space.query) return -1;

    const int64_t key_head = from * layer.key_heads / layer.heads;
    const float* keys = layer.key + key_head * layer.length * 2 * layer.padded;
    const float* phases = layer.key_phase + (layer.key_phases == 1 ? 0 : key_head) * side;
    std::memset(space.key, 0, sizeof(float) * row);
    for (int64_t block = 0; block < blocks; block++) {
        float* to = space.key + (block + 1) * row;
        rotate_block(keys, phases + block * 2 * KEYS * layer.padded, order, block, layer.length, layer.padded, to, 2 * KEYS);
        for (int64_t channel = 0; channel < 2 * layer.padded; channel++) {
            float* next = to - row + channel * 2 * KEYS + KEYS;
            std::memcpy(next, to + channel * 2 * KEYS, sizeof(float) * KEYS);
            std::memset(next + row, 0, sizeof(float) * KEYS);
        }
    }

    int64_t bad = 0;
    for (int64_t number = from; number < to; number++) {
        const float* queries = layer.query + number * layer.length * 2 * layer.padded;
        phases = layer.query_phase + (layer.query_phases == 1 ? 0 : number) * side;
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t at = block * 2 * KEYS * layer.padded;
            rotate_block(queries, phases + at, order, block, layer.length, layer.padded, space.query + at, KEYS);
        }
        const int64_t own = shuffle * layer.heads + number;
        Head head = {};
        head.edges = layer.edges + number * layer.bins;
        head.starts = layer.starts + number * (CELLS + 1);
        head.low = layer.low[number], head.scale = layer.scale[number];
        head.bins = layer.cell_bins ? layer.cell_bins + number * layer.cells : nullptr;
        head.cells = layer.cells, head.per_index = layer.per_index;
        head.dimension_sums = layer.dimension_sums + own * layer.distances;
        Counts counts = {head, space.cells};
        for (int64_t half = 0; half < layer.halves; half++) {
            const int64_t at = shuffle * layer.halves + half, part = (at * layer.heads + number) * layer.coarse;
            const InHalf sums = {layer.entries + own * layer.bins, layer.rank_sums + own * layer.bins,
                                 layer.half_entries + part, layer.half_rank_sums + part, layer.bins / layer.coarse};
            if (add_runs(layer, counts, sums, space, layer.first[at], layer.first[at + 1])) bad = number + 1;
        }
    }
    std::free(space.query);
    return (int)bad;
}

}  // extern "C"
