// The official JavaScript client against a server: node client.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = "builtin-tiny";
const messages = [{ role: "user", content: "What is the capital of France?" }];
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "EMPTY", maxRetries: 0 });
const ask = (fields = {}) => client.chat.completions.create({ model, messages, temperature: 0, ...fields });
const Capital = z.object({ city: z.string().max(20), continent: z.enum(["Europe", "Asia"]), number: z.number().int() });
const Weather = z.object({ city: z.string().max(20), unit: z.enum(["C", "F"]) });

const checks = {
  async models() {
    const found = [];
    for await (const { id } of client.models.list()) found.push(id);
    assert.deepEqual(found, [model]);
  },
  async chat() {
    const answer = await ask();
    assert.match(answer.choices[0].message.content, /Paris/);
    assert.equal(answer.choices[0].message.tool_calls, undefined);
    assert.ok(answer._request_id);
  },
  async stream() {
    const whole = (await ask()).choices[0].message.content;
    let text = "";
    let usage;
    for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole);
    assert.ok(usage.completion_tokens > 0);
    const helper = client.chat.completions.stream({ model, messages, temperature: 0 });
    assert.equal(await helper.finalContent(), whole);
  },
  async tools() {
    const tools = [zodFunction({ name: "get_weather", parameters: Weather })];
    for (const tool_choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
      const [call] = (await ask({ tools, tool_choice })).choices[0].message.tool_calls;
      Weather.parse(JSON.parse(call.function.arguments));
    }
    const helper = client.chat.completions.stream({ model, messages, temperature: 0, tools, tool_choice: "required" });
    Weather.parse(JSON.parse((await helper.finalFunctionToolCall()).arguments));
  },
  async parse() {
    const response_format = zodResponseFormat(Capital, "capital");
    const answer = await client.chat.completions.parse({ model, messages, max_tokens: 96, response_format });
    Capital.parse(answer.choices[0].message.parsed);
  },
  async logprobs() {
    const answer = await ask({ logprobs: true, top_logprobs: 3 });
    const content = answer.choices[0].logprobs.content;
    assert.equal(content.length, answer.usage.completion_tokens);
    assert.ok(content.every((position) => position.top_logprobs.length === 3));
  },
  async responses() {
    const input = messages[0].content;
    const whole = await client.responses.create({ model, input, temperature: 0 });
    assert.match(whole.output_text, /Paris/);
    let text = "";
    for await (const event of await client.responses.create({ model, input, temperature: 0, stream: true })) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, whole.output_text);
    const format = zodTextFormat(Capital, "capital");
    Capital.parse((await client.responses.parse({ model, input, max_output_tokens: 96, text: { format } })).output_parsed);
  },
  async errors() {
    await assert.rejects(ask({ max_tokens: -1 }), (error) => error instanceof OpenAI.BadRequestError && Boolean(error.requestID));
    await assert.rejects(client.embeddings.create({ model, input: "hello" }), /does not support Embeddings API/);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log("ok", name);
}
