// A token of each row of logits with penalties and filters, and log-probabilities. Contract: quire.ops.sample_tokens.
//
//   survey  many programs a row, one pass over the logits: the largest value and logit of each group of columns, sums of exponentials
//   weigh   the sum of all weights, for rows whose top_k does not bound what may be kept
//   choose  a program a row: a shortlist of values to draw from, one of raw logits to tell the likeliest, each sorted once
//
// A row whose shortlist does not tell goes through all its logits, as often as it takes (sample_whole.cuh).
//
// Macros: FLOAT32 1 = logits of 4 bytes; F16 1 = else float16, 0 = bfloat16.
#include "dependent.cuh"
#include "sample_whole.cuh"

constexpr int WANTED = 128;      // of the likeliest values, where top_k does not say
constexpr int RAW_WANTED = 64;   // of the likeliest by raw logits: most ranks are told by them

// Grid (parts, rows).
extern "C" __global__ void __launch_bounds__(THREADS) survey(const __grid_constant__ Problem p) {
    let_next_start();
    wait_for_previous();
    const int part = blockIdx.x, thread = threadIdx.x;
    const i64 row = blockIdx.y, place = row * p.num_parts + part;
    const Row r = row_of(p, row);
    float raw[LOADS][8], raw_peak = NOTHING, peak = NOTHING, strange = 0;
    u32 seen[LOADS];
    int counts[LOADS];
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        const int column = part * PART + load * TILE + thread * 8;
        seen[load] = load_seen(r, column);
        counts[load] = load_logits(r, column, raw[load]);
    }
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = raw[load][i];
            raw_peak = fmaxf(raw_peak, v[i]);
            if (i < counts[load]) strange += v[i] * 0.0f;
        }
        penalise(r, part * PART + load * TILE + thread * 8, seen[load], v);
#pragma unroll
        for (int i = 0; i < 8; i++) peak = fmaxf(peak, v[i]);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        peak = fmaxf(peak, __shfl_xor_sync(ALL, peak, step));
        raw_peak = fmaxf(raw_peak, __shfl_xor_sync(ALL, raw_peak, step));
        strange += __shfl_xor_sync(ALL, strange, step);
    }
    if (thread % 4 == 0) {
        if (p.raw_peaks != p.peaks) p.raw_peaks[place * GROUPS + thread / 4] = raw_peak;
        p.peaks[place * GROUPS + thread / 4] = peak + strange;
    }
    if (p.num_top < 0) return;
    float high = fmaxf(raw_peak, -3e38f), sum = 0;
#pragma unroll
    for (int step = 4; step < 32; step *= 2) high = fmaxf(high, __shfl_xor_sync(ALL, high, step));
#pragma unroll
    for (int load = 0; load < LOADS; load++)
#pragma unroll
        for (int i = 0; i < 8; i++) sum += exp2_fast((raw[load][i] - high) * LOG2_E);
#pragma unroll
    for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(ALL, sum, step);
    if (thread % 32 == 0) p.sums[place * WARPS + thread / 32] = make_float2(high, sum);
}

// What a row wants, besides its scale.
struct Wishes {
    bool random, limited;
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
    return w;
}

// Grid (parts, rows).
extern "C" __global__ void __launch_bounds__(THREADS) weigh(const __grid_constant__ Problem p) {
    __shared__ u64 words[WARPS];
    __shared__ u32 peaks[WARPS];
    let_next_start();
    wait_for_previous();
    const i64 row = blockIdx.y;
    const Wishes wishes = wishes_of(p, row);
    if (!wishes.random || wishes.limited) return;
    u32 key = 0;
    for (int group = threadIdx.x; group < p.num_parts * GROUPS; group += THREADS)
        key = max(key, order(p.peaks[row * p.num_parts * GROUPS + group]));
    key = __reduce_max_sync(ALL, key);
    if (threadIdx.x % 32 == 0) peaks[threadIdx.x / 32] = key;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) key = max(key, peaks[i]);
    const Row r = row_of(p, row);
    const Scale scale = scale_of(p, row, unorder(key));
    const float nothing = __double2float_rd(scale.peak + scale.temperature * scale.zero);
    u64 sum = 0;
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

// How many of `count` words in falling, or prefix sums in rising, order are ahead of `bound`. One warp comes here.
DEVICE int count_at_least(const u64* words, int count, u64 bound) {
    int found = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) found += words[i] >= bound;
    return (int)__reduce_add_sync(ALL, (u32)found);
}
DEVICE int count_less(const u64* words, int count, u64 bound) {
    int found = 0;
    for (int i = threadIdx.x % 32; i < count; i += 32) found += words[i] < bound;
    return (int)__reduce_add_sync(ALL, (u32)found);
}
DEVICE u64 share(double part, u64 whole) { return (u64)fmin(ceil(part * (double)whole), (double)whole); }
DEVICE u64 target_in(double uniform, u64 total) { return (u64)fmin(floor(uniform * (double)total), (double)total - 1.0); }

DEVICE u64 total_weight(const Problem& p, i64 row) {
    u64 total = 0;
    for (int part = 0; part < p.num_parts; part++) total += (u64)p.weights[row * p.num_parts + part];
    return total;
}

// From a sorted list with weights and their sums: how many are kept, and what is drawn among them; kept -1 = it does not tell.
CALLED void decide(const Problem& p, i64 row, const Wishes& w, const Scale& scale, double uniform, u64* weights, u64* sums, Shared& s) {
    const int lane = threadIdx.x % 32, count = s.lists[VALUES].count;
    u64 carry = 0;
    for (int first = 0; first < count; first += 32) {
        const int i = first + lane;
        const u64 weight = i < count ? weight_of(scale, value_of(s.lists[VALUES].sorted[i])) : 0;
        const u64 sum = carry + sum_up(weight);
        if (i < count) weights[i] = weight, sums[i] = sum;
        carry = __shfl_sync(ALL, sum, 31);
    }
    __syncwarp();
    const u64 outside = weight_of(scale, s.lists[VALUES].bound);  // most that a token beyond the list weighs
    const u64 kth = w.limited && w.top_k <= count ? weights[w.top_k - 1] : 0;
    const u64 lowest = (u64)ceil(w.min_p * scale.one), least = kth > lowest ? kth : lowest;
    bool told = count > 0 && (!w.limited || w.top_k <= count || outside == 0);
    told = told && (least > outside || outside == 0 || (!w.limited && least == 0));
    const int num_least = count_at_least(weights, count, least);
    u64 mass = told && num_least > 0 ? sums[num_least - 1] : 1;
    if (least == 0 && outside > 0) mass = told ? total_weight(p, row) : 1;
    u64 threshold = least;
    if (w.top_p < 1.0) {
        const int last = count_less(sums, count, share(w.top_p, mass));
        told = told && last < count;
        if (told && weights[last] > threshold) threshold = weights[last];
    }
    told = told && (threshold > outside || outside == 0);
    const int kept = count_at_least(weights, count, threshold);
    if (lane == 0) {
        s.kept = told ? kept : -1;
        if (told) s.target = target_in(uniform, sums[kept - 1]);
    }
}

// The token that the target falls in, of those that are kept, in order of their ids.
CALLED void draw_listed(const u64* weights, Shared& s) {
    const u64* sorted = s.lists[VALUES].sorted;
    for (int i = threadIdx.x; i < s.kept; i += THREADS) {
        const int mine = token_of(sorted[i]);
        u64 before = 0;
        for (int j = 0; j < s.kept; j++) before += token_of(sorted[j]) < mine ? weights[j] : 0;
        if (before <= s.target && s.target < before + weights[i]) s.id = mine;
    }
}

// The same by passes over the whole row.
CALLED void draw_whole(const Problem& p, i64 row, const Row& r, const Wishes& w, const Scale& scale, double uniform, Shared& s) {
    i64* sums = p.weights + row * p.num_parts;
    const float* peaks = p.peaks + row * p.num_parts * GROUPS;
    const bool plain = !w.limited && w.top_p >= 1.0 && w.min_p <= 0.0;
    u64 threshold = 1, total;
    if (plain) {
        total = total_weight(p, row);
    } else {
        if (w.limited) threshold = max(threshold, weight_at(r, peaks, scale, w.top_k, false, s.words));
        threshold = max(threshold, (u64)ceil(w.min_p * scale.one));
        total = weigh_parts(r, peaks, scale, threshold, sums, s.words);
        if (w.top_p < 1.0) {
            threshold = max(threshold, weight_at(r, peaks, scale, share(w.top_p, total), true, s.words));
            total = weigh_parts(r, peaks, scale, threshold, sums, s.words);
        }
    }
    draw_in_order(r, scale, threshold, sums, p.num_parts, target_in(uniform, total), s);
}

// The token of a row that is finite, to s.id.
DEVICE void pick(const Problem& p, i64 row, const Row& r, const Wishes& w, Shared& s) {
    Shortlist& list = s.lists[VALUES];
    if (!w.random) {
        u64 first = 0;
        if (list.count > SHORT) first = next_key(r, false, ~0ull, s.words);
        if (threadIdx.x == 0) s.id = token_of(list.count > SHORT ? first : list.sorted[0]);
        return;
    }
    const Scale scale = scale_of(p, row, list.peak);
    const double uniform = p.uniforms[*p.step * p.uniforms_stride + row];
    u64* weights = list.keys;  // sorted, and so free
    u64* sums = (u64*)s.groups;
    const bool listed = list.bound < -NOTHING && list.count <= SHORT;
    if (listed && threadIdx.x < 32) decide(p, row, w, scale, uniform, weights, sums, s);
    if (!listed && threadIdx.x == 0) s.kept = -1;
    __syncthreads();
    if (s.kept >= 0) draw_listed(weights, s);
    else draw_whole(p, row, r, w, scale, uniform, s);
}

// Rank and log-probability of the row's token and the likeliest, of raw logits.
CALLED void score(const Problem& p, i64 row, const Row& r, Shared& s) {
    Shortlist& list = s.lists[RAW];
    const float chosen = logit(r, s.id);
    const bool listed = list.count <= SHORT;
    const i64 place = *p.step * p.scores_stride + row * (1 + p.num_top);
    int* ids = p.score_ids + place;
    float* logprobs = p.score_logprobs + place;
    u64 above = 0;
    if (listed && chosen >= list.bound) {
        for (int i = threadIdx.x; i < list.count; i += THREADS) above += value_of(list.sorted[i]) > chosen;
        above = block_sum(above, s.words);
    } else {
        above = count_above(r, p.raw_peaks + row * p.num_parts * GROUPS, chosen, s.words);
    }
    if (threadIdx.x == 0) ids[0] = (int)above + 1, logprobs[0] = chosen - s.normaliser;
    if (listed) {
        for (int i = threadIdx.x; i < p.num_top; i += THREADS) {
            ids[1 + i] = token_of(list.sorted[i]);
            logprobs[1 + i] = value_of(list.sorted[i]) - s.normaliser;
        }
        return;
    }
    u64 key = ~0ull;  // many equal ones
    for (int i = 0; i < p.num_top; i++) {
        key = next_key(r, true, key, s.words);
        if (threadIdx.x == 0) ids[1 + i] = token_of(key), logprobs[1 + i] = value_of(key) - s.normaliser;
    }
}

// No token: the row is not finite.
DEVICE void give_up(const Problem& p, i64 row) {
    const i64 place = *p.step * p.scores_stride + row * (1 + p.num_top);
    for (int i = threadIdx.x; i < 1 + p.num_top; i += THREADS) p.score_ids[place + i] = 0, p.score_logprobs[place + i] = 0;
    if (threadIdx.x == 0) p.ids[row] = -1;
}

// Bounds of both shortlists, by a warp each, and a third for the sum of all.
CALLED void bound_lists(const Problem& p, i64 row, const Wishes& w, Shared& s) {
    const int warp = threadIdx.x / 32;
    if (warp == VALUES) {
        const bool filtered = w.limited || w.top_p < 1.0 || w.min_p > 0.0;
        Shortlist& list = s.lists[VALUES];
        const int wanted = !w.random || !filtered ? 0 : !w.limited ? WANTED : w.top_k <= MAX_WANTED ? (int)w.top_k : 0;
        const float bound = survey_list(list, s.peaks[VALUES], wanted);
        if (!w.random) list.bound = list.peak;
        else list.bound = wanted ? below(scale_of(p, row, list.peak), bound) : bound;
    } else if (warp == RAW) {
        const int wanted = p.num_top < 0 ? 0 : max(p.num_top, RAW_WANTED);
        s.lists[RAW].bound = survey_list(s.lists[RAW], s.peaks[RAW], wanted);
    } else if (warp == 2) {
        if (p.num_top >= 0) s.normaliser = log_sum(p, row);
        s.num_groups = s.id = 0;
    }
}

// Grid (rows).
extern "C" __global__ void __launch_bounds__(THREADS, 4) choose(const __grid_constant__ Problem p) {
    __shared__ Shared s;
    let_next_start();
    wait_for_previous();
    const i64 row = blockIdx.x;
    const Wishes wishes = wishes_of(p, row);
    const int num_groups = p.num_parts * GROUPS;
    float peak = NOTHING, raw_peak = NOTHING;
    bool strange = false;
    for (int group = threadIdx.x; group < num_groups; group += THREADS) {
        const float value = p.peaks[row * num_groups + group];
        strange |= value != value;
        peak = fmaxf(peak, value);
        raw_peak = fmaxf(raw_peak, p.raw_peaks[row * num_groups + group]);
    }
    s.peaks[VALUES][threadIdx.x] = order(peak);
    s.peaks[RAW][threadIdx.x] = order(raw_peak);
    if (__syncthreads_or(strange)) {
        give_up(p, row);
        return;
    }
    const Row r = row_of(p, row);
    bound_lists(p, row, wishes, s);
    __syncthreads();
    list_groups(p, row, s.lists[VALUES].bound, s.lists[RAW].bound, s);
    __syncthreads();
    if (s.num_groups > MAX_LISTED) {  // both lists count as too long
        if (threadIdx.x < 2) s.lists[threadIdx.x].count = SHORT + 1;
    } else {
        gather(r, s);
        __syncthreads();
        sort_lists(s);
    }
    __syncthreads();
    pick(p, row, r, wishes, s);
    __syncthreads();
    if (threadIdx.x == 0) p.ids[row] = s.id;
    if (p.num_top >= 0) score(p, row, r, s);
}
