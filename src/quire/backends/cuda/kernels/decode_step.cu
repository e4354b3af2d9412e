// A decoding step of a whole decoder in one persistent kernel: embedding, every layer, final norm and head, for a few rows.
//
// One CTA an SM. Each CTA owns a slice of the output rows of every matrix. Its last warp does nothing but copy those rows, in the order
// in which they are needed, into a ring in shared memory; weights depend on nothing, so the copies run ahead over the ends of phases
// and of layers, and memory never rests. The other warps multiply.
//
// Between phases CTAs hand each other vectors of 32-bit words: a number in the upper 24 bits, the phase's tag in the lower 8. Whoever
// needs a word reads it until it carries the tag: one trip through the L2, no barrier, no fence. Every word is written in every layer
// of every launch, under a tag that differs from the one before, so an old word is never mistaken for a new one. A word may be
// overwritten one layer later, because by then every CTA has published something that needed all words of the phase in question.
//
// Needs all CTAs on the device at once (a cooperative launch), and compile-time sizes as macros:
//   ROWS MOST_LAYERS HIDDEN INNER Q_HEADS KV_HEADS HEAD VOCAB EPS SCALE_LOG2 (scale · log2 e) HAS_BIAS HAS_QK_NORM BLOCK CTAS SHARED_BYTES
//   SPLITS (most parts of a row's keys) STAGE_BYTES WINDOW_BYTES (of the ring; on their way at most)
#include "decode_attention.cuh"
#include "decode_stream.cuh"

DEVICE void consume(Consumer c, const Args& args, const Layer* layers) {
    u32* const words = args.words;
    u64* const lse = reinterpret_cast<u64*>(words + WORDS_LSE);
    const u32 step = (u32)load_relaxed(args.counter);
    const int num_layers = (int)args.num_layers;
    c.tag = step % 255 + 1;
    for (int i = c.thread(); i < (Out::end() - Out::begin()) * ROWS; i += THREADS) {
        const int unit = Out::begin() + i / ROWS, row = i % ROWS;
        const i64 id = min(max(__ldg(args.ids + row), 0ll), (i64)VOCAB - 1);
        const float value = from_bf16(__ldg(args.embedding + id * HIDDEN + unit));
        c.floats(AT_RESIDUAL)[i] = value;
        store_relaxed(words + WORDS_HIDDEN + row * HIDDEN + unit, word(value, c.tag));
    }
    sync_consumers();
    for (int l = 0; l < num_layers; l++) {
        const Layer& layer = layers[l];
        c.l = l;
        stamp(args, l * 10 + 0, c.thread());
        // The hidden state carries the tag of the layer before.
        c.project_qkv(layer, words + WORDS_QKV, words + WORDS_HIDDEN, (step + l + 1) % 255 + 1);
        stamp(args, l * 10 + 2, c.thread());
        c.attend(layer, words + WORDS_QKV, words + WORDS_PARTS, lse);
        stamp(args, l * 10 + 4, c.thread());
        c.project_out(layer, words + WORDS_MIDDLE, words + WORDS_PARTS, lse);
        stamp(args, l * 10 + 6, c.thread());
        c.project_gate_up(layer, words + WORDS_INNER, words + WORDS_MIDDLE);
        stamp(args, l * 10 + 8, c.thread());
        c.project_down(words + WORDS_HIDDEN, words + WORDS_INNER);
    }
    stamp(args, (int)args.num_layers * 10, c.thread());
    c.project_logits(words + WORDS_HIDDEN);
    stamp(args, (int)args.num_layers * 10 + 2, c.thread());
    if (blockIdx.x == 0 && c.thread() == 0) store_relaxed(args.counter, (step + num_layers + 1) % 255);
}

extern "C" __global__ void __launch_bounds__(THREADS + 32, 1) decode_step(const __grid_constant__ Args args) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 base = smem_address(shared);
    Ring ring{base + AT_RING, base + AT_BARRIERS};
    Layer* layers = reinterpret_cast<Layer*>(shared + AT_LAYERS);
    const int num_layers = (int)args.num_layers;
    for (int i = threadIdx.x; i < num_layers * (int)sizeof(Layer) / 16; i += THREADS + 32)
        reinterpret_cast<uint4*>(layers)[i] = __ldg(reinterpret_cast<const uint4*>(args.layers) + i);
    for (int i = threadIdx.x; i < 16 * KEY_BYTES / 16; i += THREADS + 32) reinterpret_cast<uint4*>(shared + AT_Q)[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < ROWS * HEAD; i += THREADS + 32)
        reinterpret_cast<float*>(shared + AT_ANGLES)[i] = __ldg(args.cos_sin + (i64)max(__ldg(args.lens + i / HEAD) - 1, 0) * HEAD + i % HEAD);
    if (threadIdx.x < STAGES) {
        barrier_init(ring.barriers + threadIdx.x * 8, 1);
        barrier_init(ring.barriers + (STAGES + threadIdx.x) * 8, WARPS);
    }
    fence_async_proxy();
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncthreads();
    if (warp == WARPS) {
        Filling filling;
        filling.base = ring.base, filling.barriers = ring.barriers;
        produce(filling, args, layers, lane);
    } else {
        consume(Consumer{args, ring, warp, lane, 0, base + AT_X}, args, layers);
    }
}
