// Items of decoding rows' attention, as attention_plan.cu lists them for split_attention.cu.
#pragma once
#include "dependent.cuh"

// One split of one row, for all of its heads: keys [begin, end).
struct alignas(16) Item {
    int row, token, begin, end;
    int seq_len, split, num_splits, gap;
};
struct Plan {
    int num_items, gap[3];
    Item items[1];  // and more
};

// Split i of a row is keys [i * keys, (i + 1) * keys): split_keys each, or the least multiple of it that needs no more than most_splits.
struct Splits {
    int seq_len, keys, count;

    DEVICE Splits(int seq_len, int split_keys, int most_splits) : seq_len(seq_len), keys(split_keys) {
        const int most_keys = split_keys * most_splits;
        if (seq_len > most_keys) keys = (seq_len + most_keys - 1) / most_keys * split_keys;
        count = max(1, (seq_len + keys - 1) / keys);
    }
    DEVICE int last_keys() const { return seq_len - (count - 1) * keys; }
    DEVICE Item item(int row, int token, int i) const { return {row, token, i * keys, min((i + 1) * keys, seq_len), seq_len, i, count, 0}; }
};
