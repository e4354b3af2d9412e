// Vercel's AI SDK against a server, through its OpenAI-compatible and its OpenAI provider: node client.mjs URL
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, generateObject, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.argv[2]}/v1`;
const compatible = createOpenAICompatible({
  name: "quire", baseURL, apiKey: "EMPTY", includeUsage: true, supportsStructuredOutputs: true,
});
const plain = createOpenAICompatible({ name: "quire", baseURL });
const openai = createOpenAI({ baseURL, apiKey: "EMPTY" });
const model = compatible("builtin-tiny");
const prompt = "What is the capital of France?";
const common = { model, prompt, temperature: 0, maxRetries: 0 };
const Capital = z.object({ city: z.string().max(20), continent: z.enum(["Europe", "Asia"]) });
const tools = {
  get_weather: tool({
    description: "The weather of a city",
    inputSchema: z.object({ city: z.string().max(20), unit: z.enum(["C", "F"]) }),
    execute: async ({ city }) => `${city}: sunny`,
  }),
};

const checks = {
  async chat() {
    const answer = await generateText(common);
    assert.match(answer.text, /Paris/);
    assert.equal(answer.finishReason, "stop");
    assert.match((await generateText({ ...common, model: openai.chat("builtin-tiny") })).text, /Paris/);
  },
  async stream() {
    const whole = (await generateText(common)).text;
    const answer = streamText(common);
    let text = "";
    for await (const part of answer.textStream) text += part;
    assert.equal(text, whole);
    assert.ok((await answer.usage).outputTokens > 0);
  },
  async tools() {
    for (const toolChoice of ["required", { type: "tool", toolName: "get_weather" }]) {
      const answer = await generateText({ ...common, tools, toolChoice });
      assert.equal(answer.toolCalls[0].toolName, "get_weather");
      assert.match(answer.toolResults[0].output, /sunny/);
    }
    const streamed = streamText({ ...common, tools, toolChoice: "required" });
    assert.equal((await streamed.toolCalls)[0].toolName, "get_weather");
    assert.ok((await generateText({ ...common, tools })).finishReason); // tool_choice auto
  },
  async parse() {
    const { object } = await generateObject({ ...common, schema: Capital, maxOutputTokens: 64 });
    Capital.parse(object);
    const { output } = await generateText({ ...common, output: Output.object({ schema: Capital }), maxOutputTokens: 64 });
    Capital.parse(output);
    // Without supportsStructuredOutputs the SDK asks for json_object alone.
    const free = await generateObject({ ...common, model: plain("builtin-tiny"), output: "no-schema", maxOutputTokens: 64 });
    assert.equal(typeof free.object, "object");
  },
  async logprobs() {
    const providerOptions = { openai: { logprobs: 3 } };
    const answer = await generateText({ ...common, model: openai.chat("builtin-tiny"), providerOptions });
    const { logprobs } = answer.providerMetadata.openai;
    assert.equal(logprobs.length, answer.usage.outputTokens);
  },
  async responses() {
    const asked = { ...common, model: openai("builtin-tiny") }; // what its OpenAI provider uses by itself
    const whole = (await generateText(asked)).text;
    assert.match(whole, /Paris/);
    let text = "";
    for await (const part of streamText(asked).textStream) text += part;
    assert.equal(text, whole);
    Capital.parse((await generateObject({ ...asked, schema: Capital, maxOutputTokens: 64 })).object);
  },
  async errors() {
    await assert.rejects(
      embed({ model: plain.embeddingModel("builtin-tiny"), value: "hello", maxRetries: 0 }), /does not support Embeddings API/,
    );
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log("ok", name);
}
