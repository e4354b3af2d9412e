// Words of the pages in two languages; the choice is kept in the browser.

const WORDS = {
  en: {
    new: "New chat", settings: "Settings", dashboard: "Dashboard", chat: "Chat", close: "Close", language: "中文",
    conversation: "Conversation", message: "Message", placeholder: "Write a message…", send: "Send", stop: "Stop",
    system: "System prompt", systemHint: "What the model should know and how it should answer", sampling: "Sampling",
    samplingHint: "An empty field leaves the choice to the model's own defaults.", default: "default",
    temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Max tokens",
    repetition_penalty: "Repetition penalty", seed: "Seed", apiKey: "API key",
    apiKeyHint: "Needed only when the server was started with --api-key. It is forgotten when this page is closed.",
    you: "You", edit: "Edit", retry: "Retry", copy: "Copy", copied: "Copied", save: "Send", cancel: "Cancel",
    thinking: "Reasoning", stopped: "stopped", cut: "cut off at the token limit", tokens: "tokens", perSecond: "tokens/s",
    first: "first token", error: "Error", colon: ": ", badNumber: "is not a number:", welcome: "What would you like to know?",
    welcomeHint: "What you write goes to this server and nowhere else.",
    examples: ["What is the capital of France?", "Count from 1 to 10.", "Give me a JSON object with a name and an age.", "Who are you?"],
    keys: "Enter sends · Shift+Enter: new line · Esc: stop · ↑: edit the last question",
    toEnd: "To the end", reset: "Reset sampling", assistant: "Assistant", menu: "Menu",
    load: "Load", latency: "Latency", none: "no requests in the last 60 s", waitingData: "reading…", now: "now", secondsAgo: " s ago", minutesAgo: " min ago",
    starting: "the server is starting", ready: "ready", gone: "the server does not answer",
    requests: "Requests finished", throughput: "Tokens", queue: "Requests in the engine", kv: "KV cache in use",
    prefix: "Prefix cache hits", ttft: "Time to first token", e2e: "Latency of requests", itl: "Between two tokens", queueTime: "Time in the queue",
    generated: "generated", prompt: "prompt", running: "running", waiting: "waiting", perSec: "/s",
    window: "Live from /metrics, every second. Percentiles and the hit rate are over the last 60 s.",
    unreachable: "The server does not answer; trying again.",
  },
  zh: {
    new: "新对话", settings: "设置", dashboard: "仪表盘", chat: "对话", close: "关闭", language: "EN",
    conversation: "对话", message: "消息", placeholder: "输入消息……", send: "发送", stop: "停止",
    system: "系统提示词", systemHint: "希望模型知道什么、怎样回答", sampling: "采样",
    samplingHint: "留空则使用模型自己的默认值。", default: "默认",
    temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最多 token 数",
    repetition_penalty: "重复惩罚", seed: "随机种子", apiKey: "API 密钥",
    apiKeyHint: "仅当服务器以 --api-key 启动时才需要。关闭本页后即被忘记。",
    you: "你", edit: "编辑", retry: "重试", copy: "复制", copied: "已复制", save: "发送", cancel: "取消",
    thinking: "思考过程", stopped: "已停止", cut: "达到 token 上限而截断", tokens: "个 token", perSecond: "token/秒",
    first: "首 token", error: "错误", colon: "：", badNumber: "不是数字：", welcome: "想问点什么？",
    welcomeHint: "输入的内容只会发给这台服务器。",
    examples: ["浙江的省会在哪里？", "从 1 数到 10。", "你好，你是谁？", "法国的首都是哪里？"],
    keys: "Enter 发送 · Shift+Enter 换行 · Esc 停止 · ↑ 修改上一个问题",
    toEnd: "回到底部", reset: "恢复默认采样", assistant: "助手", menu: "菜单",
    load: "负载", latency: "延迟", none: "最近 60 秒没有请求", waitingData: "读取中……", now: "现在", secondsAgo: " 秒前", minutesAgo: " 分钟前",
    starting: "服务器正在启动", ready: "就绪", gone: "服务器没有响应",
    requests: "完成的请求", throughput: "Token", queue: "引擎中的请求", kv: "KV 缓存占用",
    prefix: "前缀缓存命中率", ttft: "首 token 延迟", e2e: "请求总延迟", itl: "token 间隔", queueTime: "排队时间",
    generated: "生成", prompt: "提示", running: "运行", waiting: "等待", perSec: "/秒",
    window: "数据来自 /metrics，每秒更新；百分位数与命中率取最近 60 秒。",
    unreachable: "服务器没有响应，正在重试。",
  },
};

let language = stored() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

function stored() {
  try {
    const found = localStorage.getItem("quire-language");
    return found in WORDS ? found : null;
  } catch {
    return null; // storage is switched off
  }
}

export function word(key) {
  return WORDS[language][key] ?? key;
}

// Several texts of one kind.
export function words(key) {
  return WORDS[language][key];
}

// Fills in the words of the page, and lets #language change them; onChange redraws what scripts have written.
export function translate(onChange) {
  const apply = () => {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    for (const node of document.querySelectorAll("[data-i18n]")) node.textContent = word(node.dataset.i18n);
    for (const node of document.querySelectorAll("[data-i18n-placeholder]")) node.placeholder = word(node.dataset.i18nPlaceholder);
    for (const node of document.querySelectorAll("[data-i18n-label]")) node.setAttribute("aria-label", word(node.dataset.i18nLabel));
    document.querySelector("#language").textContent = word("language");
    document.querySelector("#language").lang = language === "zh" ? "en" : "zh-CN";
    onChange();
  };
  document.querySelector("#language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    try {
      localStorage.setItem("quire-language", language);
    } catch {
      // the choice then lasts as long as the page
    }
    apply();
  });
  apply();
}
