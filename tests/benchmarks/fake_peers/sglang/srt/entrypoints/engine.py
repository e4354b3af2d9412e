"""What the benchmark calls of SGLang, with tokens that mean nothing and a clock of a thousandth of a second a step."""

import asyncio
import time


class Engine:
    def __init__(self, **options):
        assert options["load_format"] == "dummy" and options["skip_tokenizer_init"]
        self.loop = asyncio.new_event_loop()

    def generate(self, input_ids, sampling_params):
        time.sleep(0.001 * max(p["max_new_tokens"] for p in sampling_params))
        return [{"output_ids": [1] * p["max_new_tokens"]} for p in sampling_params]

    async def async_generate(self, input_ids, sampling_params, stream):
        async def chunks():
            for count in range(1, sampling_params["max_new_tokens"] + 1):
                await asyncio.sleep(0.001)
                yield {"meta_info": {"completion_tokens": count}}

        return chunks()

    def shutdown(self):
        self.loop.close()
