// D of listed query-key pairs ("entries") in float64, from which the pilot learns how often rounding in float32 moves D
// to another bin. No loop here is shared with native.cpp, whose rounding it measures.
//
// Rotary pairs are taken eight at a time: channels [pos][pair][2] are multiplied, neighbours added, and the softmax over
// pairs summed in vectors. Weights are powers of two, by a series (relative error below 1e-12).

#include <cstdint>
#include <cstring>

namespace {

constexpr int WIDE = 8;  // pairs taken at a time in float64
typedef double Wide __attribute__((vector_size(8 * WIDE)));
typedef int64_t WideIntegers __attribute__((vector_size(8 * WIDE)));
typedef float Narrow __attribute__((vector_size(4 * WIDE)));
#if defined(__clang__) || __GNUC__ >= 12
#define EVEN(x, y) __builtin_shufflevector(x, y, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD(x, y) __builtin_shufflevector(x, y, 1, 3, 5, 7, 9, 11, 13, 15)
#else
#define EVEN(x, y) __builtin_shuffle(x, y, WideIntegers{0, 2, 4, 6, 8, 10, 12, 14})
#define ODD(x, y) __builtin_shuffle(x, y, WideIntegers{1, 3, 5, 7, 9, 11, 13, 15})
#endif

inline Wide load_wide(const float* from) {
    Narrow narrow;
    std::memcpy(&narrow, from, sizeof(narrow));
    return __builtin_convertvector(narrow, Wide);
}

// 2^x for -1000 <= x <= 0, relative error below 1e-12: 2^round(x) by shifting an integer into the exponent bits, the rest,
// within half of zero, by ten terms of its series.
inline Wide exact_power_of_two(Wide x) {
    const Wide shifter = Wide{} + (6755399441055744.0 + 1023.0);
    const Wide shifted = x + shifter;
    const Wide rest = x - (shifted - shifter);
    Wide power = Wide{} + 7.054911620801121e-09;
    power = power * rest + 1.0178086009239696e-07;
    power = power * rest + 1.3215486790144305e-06;
    power = power * rest + 1.5252733804059838e-05;
    power = power * rest + 0.00015403530393381606;
    power = power * rest + 0.0013333558146428441;
    power = power * rest + 0.009618129107628477;
    power = power * rest + 0.055504108664821576;
    power = power * rest + 0.2402265069591007;
    power = power * rest + 0.6931471805599453;
    power = power * rest + 1.0;
    return power * (Wide)((WideIntegers)shifted << 52);
}

}  // namespace

extern "C" {

// D of n listed entries of one head. `scale` is log2(e) / T; pairs of queries and keys are padded with zeros to a
// multiple of 8, and `exponents` has room for as many.
void exact_dominant(const float* query, const float* key, int64_t pairs, double scale, const int64_t* query_pos,
                    const int64_t* key_pos, int64_t n, double* exponents, double* dominant) {
    const int64_t padded = (pairs + WIDE - 1) / WIDE * WIDE;
    for (int64_t listed = 0; listed < n; listed++) {
        const float *q = query + query_pos[listed] * 2 * padded, *k = key + key_pos[listed] * 2 * padded;
        Wide largest = Wide{} - __builtin_inf();
        for (int64_t pair = 0; pair < padded; pair += WIDE) {
            const Wide low = load_wide(q + 2 * pair) * load_wide(k + 2 * pair);
            const Wide high = load_wide(q + 2 * pair + WIDE) * load_wide(k + 2 * pair + WIDE);
            Wide exponent = (EVEN(low, high) + ODD(low, high)) * scale;
            for (int64_t pad = pairs - pair; pad < WIDE; pad++) exponent[pad] = -__builtin_inf();
            largest = largest < exponent ? exponent : largest;
            std::memcpy(exponents + pair, &exponent, sizeof(exponent));
        }
        double top = largest[0];
        for (int lane = 1; lane < WIDE; lane++) top = top < largest[lane] ? largest[lane] : top;
        Wide total = Wide{}, weighted = Wide{}, index = Wide{0, 1, 2, 3, 4, 5, 6, 7};
        for (int64_t pair = 0; pair < padded; pair += WIDE, index += WIDE) {
            Wide below;
            std::memcpy(&below, exponents + pair, sizeof(below));
            below -= top;
            const Wide least = Wide{} - 1000.0;
            const Wide weight = exact_power_of_two(below < least ? least : below);
            total += weight;
            weighted += weight * index;
        }
        double sum = 0, by_index = 0;
        for (int lane = 0; lane < WIDE; lane++) sum += total[lane], by_index += weighted[lane];
        dominant[listed] = by_index / sum;
    }
}

}  // extern "C"
