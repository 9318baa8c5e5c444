/** The page's side of MCP Apps (SEP-1865, 2026-01-26): JSON-RPC with the window that shows it. */

const PROTOCOL = "2026-01-26";

export class Host {
  constructor() {
    this.waiting = new Map();
    this.handlers = { ping: () => ({}), "ui/resource-teardown": () => ({}) };
    this.context = {};
    this.count = 0;
    window.addEventListener("message", (event) => {
      if (event.source === window.parent && event.data?.jsonrpc === "2.0") this.receive(event.data);
    });
  }

  /** Hears a notification or answers a request. */
  on(method, handler) {
    this.handlers[method] = handler;
  }

  /** Says hello; from then on the host tells of the tool's call. */
  async connect(version, onContext) {
    this.on("ui/notifications/host-context-changed", (changed) => {
      Object.assign(this.context, changed);
      onContext(this.context);
    });
    const { hostContext = {} } = await this.request("ui/initialize", {
      protocolVersion: PROTOCOL,
      appInfo: { name: "nnterp-viewer", title: "nnterp viewer", version },
      appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
    });
    Object.assign(this.context, hostContext);
    onContext(this.context);
    this.notify("ui/notifications/initialized");
    new ResizeObserver(() => this.tellSize()).observe(document.body);
  }

  tellSize() {
    const { width, height } = document.body.getBoundingClientRect();
    this.notify("ui/notifications/size-changed", { width: Math.ceil(width), height: Math.ceil(height) });
  }

  /** Calls a tool of the server behind the host, and gives its structured content. */
  async callTool(name, parameters) {
    return structured(await this.request("tools/call", { name, arguments: parameters }));
  }

  request(method, params) {
    const id = ++this.count;
    this.send({ id, method, params });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  notify(method, params = {}) {
    this.send({ method, params });
  }

  send(message) {
    // Which origin shows the page is the host's business; nothing that is said here is secret to it.
    window.parent.postMessage({ jsonrpc: "2.0", ...message }, "*");
  }

  receive({ id, method, params, result, error }) {
    if (method === undefined) this.settle(id, result, error);
    else if (id === undefined) this.handlers[method]?.(params ?? {});
    else if (method in this.handlers) this.send({ id, result: this.handlers[method](params ?? {}) });
    else this.send({ id, error: { code: -32601, message: `nnterp's viewer has no method ${method}` } });
  }

  settle(id, result, error) {
    const { resolve, reject } = this.waiting.get(id) ?? {};
    this.waiting.delete(id);
    if (error) reject?.(new Error(error.message));
    else resolve?.(result);
  }
}

/** The structured content of a tool's result, or its error. */
export function structured({ structuredContent, content = [], isError = false }) {
  const text = content.map((block) => block.text ?? "").join("\n");
  if (isError || !structuredContent) throw new Error(text || "the tool gave no structured content");
  return structuredContent;
}
