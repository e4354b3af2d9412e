// A token of each row of logits with penalties and filters, and log-probabilities. Contract: quire.ops.sample_tokens.
//
//   survey  many programs a row, one pass over the logits: the largest of each group of columns, sums of exponentials
//   weigh   the sum of all weights, for rows whose top_k does not bound what may be kept
//   choose  a program a row: a shortlist, each of its tokens compared with all others, and a draw of what is kept
//
// A row whose shortlist does not tell gets a longer one, and then goes through all its logits, as often as it takes (sample_whole.cuh).
//
// Macros: FLOAT32 1 = logits of 4 bytes; F16 1 = else float16, 0 = bfloat16.
#include "dependent.cuh"
#include "sample_whole.cuh"

constexpr int WANTED = 128;     // of the likeliest, where top_k does not say
constexpr int MORE_WANTED = 8;  // so that the k-th is likelier than what is left out
constexpr int SCORED = 32;      // so that most ranks are told
constexpr int ITEMS = SHORT / THREADS;
// From a logit to the next lower one, as `order`.
constexpr u32 STEP = FLOAT32 ? 1 : F16 ? 0x2000 : 0x10000;

// Grid (parts, rows).
extern "C" __global__ void __launch_bounds__(THREADS, 4) survey(const __grid_constant__ Problem p) {
    let_next_start();
    wait_for_previous();
    const int column0 = blockIdx.x * PART + threadIdx.x * 8, lane = threadIdx.x % 32;
    const i64 row = blockIdx.y, place = row * p.num_parts + blockIdx.x;
    const Row r = row_of(p, row);
    Eight eights[LOADS];
    u32 seen[LOADS];
    float high = FLOOR, peak = FLOOR, strange = 0;
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        seen[load] = load_seen(r, column0 + load * TILE);
        eights[load] = load_eight(r, column0 + load * TILE);
    }
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        float most = FLOOR, most_free = FLOOR;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float v = element(eights[load], i);
            most = fmaxf(most, v);
            strange += v * 0.0f;
        }
        if (seen[load]) {
#pragma unroll
            for (int i = 0; i < 8; i++) most_free = fmaxf(most_free, seen[load] >> i & 1 ? FLOOR : element(eights[load], i));
        } else {
            most_free = most;
        }
        high = fmaxf(high, most), peak = fmaxf(peak, most_free);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        peak = fmaxf(peak, __shfl_xor_sync(ALL, peak, step));
        strange += __shfl_xor_sync(ALL, strange, step);
    }
    if (lane % 4 == 0) p.peaks[place * GROUPS + threadIdx.x / 4] = peak + strange;
    if (p.num_top < 0 && !p.weigh_all) return;
    float sum = 0, value = 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) high = fmaxf(high, __shfl_xor_sync(ALL, high, step));
    const float scaled = high * LOG2_E;
#pragma unroll
    for (int load = 0; load < LOADS; load++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum += exp2_fast(element(eights[load], i) * LOG2_E - scaled);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(ALL, sum, step);
    if (p.weigh_all && r.penalised) value = largest_value(r, column0);
    if (lane == 0) p.sums[place * WARPS + threadIdx.x / 32] = make_float4(high, sum, p.weigh_all && r.penalised ? value : high, 0);
}

// What a row wants, besides its scale.
struct Wishes {
    bool random, limited, filtered;
    i64 top_k;
    double top_p, min_p;
};
DEVICE Wishes wishes_of(const Problem& p, i64 row) {
    Wishes w;
    w.random = control(p, 0, row) > 0;
    w.top_k = (i64)control(p, 1, row);
    w.limited = w.top_k > 0 && w.top_k < p.size;
    w.top_p = control(p, 2, row);
    w.min_p = control(p, 3, row);
    w.filtered = w.limited || w.top_p < 1.0 || w.min_p > 0.0;
    return w;
}
// How many of the likeliest logits to list first; 0 = no list is of use.
DEVICE int wanted_of(const Problem& p, const Wishes& w) {
    int wanted = !w.random ? 1 : !w.filtered ? 0 : w.limited ? (int)min(w.top_k, (i64)MAX_WANTED) : WANTED;
    if (wanted > 0) wanted += MORE_WANTED;
    if (p.num_top >= 0) wanted = max(wanted, max(p.num_top, SCORED));
    return min(wanted, MAX_WANTED);
}

// The row's largest value, where weigh_all.
DEVICE float largest_of_row(const Problem& p, i64 row, float* floats) {
    const int count = p.num_parts * WARPS;
    float peak = FLOOR;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += THREADS) peak = fmaxf(peak, p.sums[row * count + i].z);
    return block_max(peak, floats);
}

// Grid (parts, rows).
extern "C" __global__ void __launch_bounds__(THREADS) weigh(const __grid_constant__ Problem p) {
    __shared__ u64 words[WARPS];
    __shared__ float floats[WARPS];
    let_next_start();
    wait_for_previous();
    const i64 row = blockIdx.y;
    const Wishes wishes = wishes_of(p, row);
    if (!wishes.random || wishes.limited) return;
    const Row r = row_of(p, row);
    const Scale scale = scale_of(p, row, largest_of_row(p, row, floats));
    const float nothing = __double2float_rd(scale.peak + scale.temperature * scale.zero);
    u64 sum = 0;
#pragma unroll 1
    for (int load = 0; load < LOADS; load++) {
        float v[8];
        const int count = load_values(r, blockIdx.x * PART + load * TILE + threadIdx.x * 8, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (i < count && v[i] >= nothing) sum += weight_of(scale, v[i]);
    }
    sum = block_sum(sum, words);
    if (threadIdx.x == 0) p.weights[row * p.num_parts + blockIdx.x] = (i64)sum;
}

DEVICE u64 share(double part, u64 whole) { return (u64)fmin(ceil(part * (double)whole), (double)whole); }
DEVICE u64 target_in(double uniform, u64 total) { return (u64)fmin(floor(uniform * (double)total), (double)total - 1.0); }

DEVICE u64 total_weight(const Problem& p, i64 row) {
    u64 total = 0;
#pragma unroll 4
    for (int part = 0; part < p.num_parts; part++) total += (u64)p.weights[row * p.num_parts + part];
    return total;
}

// Where a listed token stands among the others.
struct Place {
    int rank, raw_rank;  // how many are ahead of it, by value and by logit
    u64 weight, up_to;   // up_to: of it and of those ahead by value
};
DEVICE Place place_of(const Token& mine, u64 weight, const Shared& s) {
    Place found = {0, 0, weight, weight};
    const int count = s.count;
#pragma unroll 4
    for (int i = 0; i < count; i++) {  // no branches: lanes would take turns
        const Token other = s.tokens[i];
        const bool ahead = other.by_value > mine.by_value;
        found.rank += ahead;
        found.up_to += ahead ? s.weights[i] : 0ull;
        found.raw_rank += other.by_logit > mine.by_logit;
    }
    return found;
}
DEVICE void place_tokens(const Scale& scale, bool weighed, Shared& s, Place (&places)[ITEMS]) {
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int i = threadIdx.x + item * THREADS;
        if (i < s.count) s.weights[i] = weighed ? weight_of(scale, number_of(s.tokens[i].by_value)) : 0;
    }
    __syncthreads();
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int i = threadIdx.x + item * THREADS;
        places[item] = {SHORT, SHORT, 0, 0};
        if (i < s.count) places[item] = place_of(s.tokens[i], s.weights[i], s);
    }
}

// Sum of the listed weights of at least `least`.
DEVICE u64 listed_weight(const Place (&places)[ITEMS], u64 least, u64* words) {
    u64 sum = 0;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) sum += places[item].weight >= least ? places[item].weight : 0;
    return block_sum(sum, words);
}

// The least weight that is kept, to `threshold`; false = the list does not tell. outside: most that a token beyond it weighs.
DEVICE bool find_threshold(const Problem& p, i64 row, const Wishes& w, double one, u64 outside, const Place (&places)[ITEMS], Shared& s, u64& threshold) {
    if (threadIdx.x == 0) s.kth = s.by_p = 0;
    __syncthreads();
#pragma unroll
    for (int item = 0; item < ITEMS; item++)
        if (w.limited && places[item].rank == w.top_k - 1) s.kth = places[item].weight;
    __syncthreads();
    const u64 lowest = (u64)ceil(w.min_p * one), least = s.kth > lowest ? s.kth : lowest;
    const bool all = !w.limited && least == 0;
    threshold = least;
    if (w.limited && w.top_k > s.count && outside > 0) return false;
    if (least <= outside && outside > 0 && !all) return false;
    if (w.top_p < 1.0) {
        const u64 needed = share(w.top_p, all && outside > 0 ? total_weight(p, row) : listed_weight(places, least, s.words));
#pragma unroll
        for (int item = 0; item < ITEMS; item++)
            if (places[item].up_to >= needed && places[item].up_to - places[item].weight < needed) s.by_p = places[item].weight;
        __syncthreads();
        if (s.by_p == 0) return false;
        if (s.by_p > threshold) threshold = s.by_p;
    }
    return threshold > outside || outside == 0;
}

// The token of a row by its list, to s.id; false = it does not tell. peak: the largest value listed.
DEVICE bool by_list(const Problem& p, i64 row, const Row& r, const Wishes& w, float peak, Shared& s, Place (&places)[ITEMS]) {
    if (s.count > SHORT) return false;
    const bool weighed = w.random && w.filtered;
    const Scale scale = scale_of(p, row, peak);
    const u64 outside = weighed ? weight_of(scale, unorder(s.bound - (r.penalised || s.bound <= 0x80000000u ? 1 : STEP))) : 0;
    place_tokens(scale, weighed, s, places);
    if (peak < unorder(s.bound)) return false;
    u64 threshold = 0, target = 0;
    if (w.random) {
        if (!weighed || !find_threshold(p, row, w, scale.one, outside, places, s, threshold)) return false;
        const u64 total = listed_weight(places, threshold, s.words);
        target = target_in(p.uniforms[*p.step * p.uniforms_stride + row], total);
    }
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
        const int at = threadIdx.x + item * THREADS;
        if (!w.random) {
            if (places[item].rank == 0) s.id = token_of(s.tokens[at].by_value);
            continue;
        }
        if (at >= s.count || places[item].weight < threshold) continue;
        const u32 mine = (u32)s.tokens[at].by_value;
        const int count = s.count;
        u64 before = 0;
#pragma unroll 4
        for (int i = 0; i < count; i++) {  // of smaller ids, which make keys larger
            const u64 weight = s.weights[i];
            before += ((u32)s.tokens[i].by_value > mine) & (weight >= threshold) ? weight : 0ull;
        }
        if (before <= target && target < before + places[item].weight) s.id = token_of(mine);
    }
    return true;
}

// The same by passes over the whole row.
CALLED void by_whole_row(const Problem& p, i64 row, const Row& r, const Wishes& w, Shared& s) {
    const float* peaks = p.peaks + row * p.num_parts * GROUPS;
    i64* sums = p.weights + row * p.num_parts;
    const u64 first = p.weigh_all && w.random ? 0 : next_key(r, false, ~0ull, s.words);
    if (!w.random) {
        if (threadIdx.x == 0) s.id = token_of(first);
        return;
    }
    const Scale scale = scale_of(p, row, p.weigh_all ? largest_of_row(p, row, s.floats) : number_of(first));
    u64 threshold = 1, total;
    if (!w.filtered) {
        total = total_weight(p, row);
    } else {
        if (w.limited) threshold = max(threshold, weight_at(r, peaks, scale, w.top_k, false, s));
        threshold = max(threshold, (u64)ceil(w.min_p * scale.one));
        total = weigh_parts(r, peaks, scale, threshold, sums, s.words);
        if (w.top_p < 1.0) {
            threshold = max(threshold, weight_at(r, peaks, scale, share(w.top_p, total), true, s));
            total = weigh_parts(r, peaks, scale, threshold, sums, s.words);
        }
    }
    const double uniform = p.uniforms[*p.step * p.uniforms_stride + row];
    draw_in_order(r, scale, threshold, sums, p.num_parts, target_in(uniform, total), s);
}

// The sum of exp(logit - high) of this thread's share of the row's sums.
struct Partial {
    float high, sum;
};
DEVICE Partial partial_sum(const Problem& p, i64 row) {
    const int count = p.num_parts * WARPS;
    Partial found = {FLOOR, 0};
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += THREADS) {
        const float4 part = p.sums[row * count + i];
        const float high = fmaxf(found.high, part.x);
        found.sum = found.sum * exp2_fast((found.high - high) * LOG2_E) + part.y * exp2_fast((part.x - high) * LOG2_E);
        found.high = high;
    }
    return found;
}

// Rank and log-probability of the row's token and the likeliest, by their logits.
DEVICE void score(const Problem& p, i64 row, const Row& r, Partial partial, Shared& s, const Place (&places)[ITEMS]) {
    const i64 place = *p.step * p.scores_stride + row * (1 + p.num_top);
    int* ids = p.score_ids + place;
    float* logprobs = p.score_logprobs + place;
    const float chosen = logit(r, s.id), high = block_max(partial.high, s.floats);
    const float normaliser = high + logf(block_add(partial.sum * exp2_fast((partial.high - high) * LOG2_E), s.floats));
    const bool listed = s.count <= SHORT;
    u64 above = 0;
    if (listed && chosen >= unorder(s.bound)) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            const int at = threadIdx.x + item * THREADS;
            above += __syncthreads_count(at < s.count && number_of(s.tokens[at].by_logit) > chosen);
        }
    } else {
        above = count_above(r, p.peaks + row * p.num_parts * GROUPS, chosen, s.words);
    }
    if (threadIdx.x == 0) ids[0] = (int)above + 1, logprobs[0] = chosen - normaliser;
    if (listed) {
#pragma unroll
        for (int item = 0; item < ITEMS; item++) {
            if (places[item].raw_rank >= p.num_top) continue;
            const u64 mine = s.tokens[threadIdx.x + item * THREADS].by_logit;
            ids[1 + places[item].raw_rank] = token_of(mine);
            logprobs[1 + places[item].raw_rank] = number_of(mine) - normaliser;
        }
        return;
    }
    u64 key = ~0ull;  // many equal ones
#pragma unroll 1
    for (int i = 0; i < p.num_top; i++) {
        key = next_key(r, true, key, s.words);
        if (threadIdx.x == 0) ids[1 + i] = token_of(key), logprobs[1 + i] = number_of(key) - normaliser;
    }
}

// No token: the row is not finite.
DEVICE void give_up(const Problem& p, i64 row) {
    const i64 place = *p.step * p.scores_stride + row * (1 + p.num_top);
    for (int i = threadIdx.x; i < 1 + p.num_top; i += THREADS) p.score_ids[place + i] = 0, p.score_logprobs[place + i] = 0;
    if (threadIdx.x == 0) p.ids[row] = -1;
}

// Grid (rows).
extern "C" __global__ void __launch_bounds__(THREADS, 4) choose(const __grid_constant__ Problem p) {
    __shared__ Shared s;
    let_next_start();
    wait_for_previous();
    const i64 row = blockIdx.x;
    const Row r = row_of(p, row);
    const Wishes wishes = wishes_of(p, row);
    Partial partial;
    if (p.num_top >= 0) partial = partial_sum(p, row);
    if (!load_peaks(p, row, s)) {
        give_up(p, row);
        return;
    }
    Place places[ITEMS];
    bool told = false;
    for (int wanted = wanted_of(p, wishes); wanted > 0; wanted = MAX_WANTED) {
        const float peak = list_tokens(p, row, r, wanted, s);
        told = by_list(p, row, r, wishes, peak, s, places);
        if (told || wanted == MAX_WANTED || s.count > SHORT || (wishes.random && !wishes.filtered)) break;
    }
    if (!told) by_whole_row(p, row, r, wishes, s);
    __syncthreads();
    if (threadIdx.x == 0) p.ids[row] = s.id;
    if (p.num_top >= 0) score(p, row, r, partial, s, places);
}
