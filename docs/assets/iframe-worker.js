// Search without a server: pages from disk may start no worker, so that the search runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.document.open();  // the empty page of the frame is of this page's origin, the script's file is not
      inner.document.close();
      inner.postMessage = data => {
        const message = new MessageEvent("message", {data});
        this.dispatchEvent(message);
        this.onmessage?.(message);
      };
      inner.importScripts = (...scripts) => Promise.all(scripts.map(script => this.load(script)));
      this.started = this.load(String(address));
    }

    load(address) {
      return new Promise((loaded, failed) => {
        const script = Object.assign(this.frame.contentDocument.createElement("script"), {
          src: address, async: false, onload: loaded, onerror: failed,
        });
        this.frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      this.started.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
