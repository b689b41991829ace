/* The search runs in a Worker, which browsers do not start for pages that are read from a folder. There a hidden frame does. */
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.inner = frame.contentWindow
      const load = source => new Promise((done, failed) => {
        const script = this.inner.document.createElement("script")
        Object.assign(script, { src: source, onload: done, onerror: failed })
        this.inner.document.body.append(script)
      })
      this.inner.importScripts = (...sources) => sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve())
      this.inner.postMessage = data => this.tell(this, data)
      this.ready = load(new URL(url, location))
    }

    postMessage(data) {
      this.ready.then(() => this.tell(this.inner, data))
    }

    tell(target, data) {
      const message = new MessageEvent("message", { data })
      target.dispatchEvent(message)
      if (target === this && this.onmessage) this.onmessage(message)
    }
  }
}
