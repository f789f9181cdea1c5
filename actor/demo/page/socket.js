// The connection to the server: reconnects by itself, and continues where it was.

export class Connection {
  constructor(position, onMessage, onState) {
    this.position = position; // () => [session, seq] that this page has
    this.onMessage = onMessage;
    this.onState = onState; // called with (whether it is open, why it is not as far as is known)
    this.wait = 250;
    this.open();
  }

  open() {
    const address = new URL("live", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.socket = new WebSocket(address);
    let opened = false;
    this.socket.onopen = () => {
      opened = true;
      const [session, seq] = this.position();
      this.send({ type: "hello", session, seq });
      this.wait = 250;
      this.onState(true, "");
    };
    this.socket.onmessage = (message) => this.onMessage(JSON.parse(message.data));
    this.socket.onclose = () => {
      if (opened) this.onState(false, "");
      else this.ask();
      setTimeout(() => this.open(), this.wait);
      this.wait = Math.min(this.wait * 2, 4000);
    };
  }

  send(message) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  // A browser does not show a page why its socket was refused.
  async ask() {
    const answer = await fetch("live", { method: "POST" }).catch(() => null);
    const why = answer?.status === 403 ? await answer.text() : "";
    if (this.socket.readyState !== WebSocket.OPEN) this.onState(false, why);
  }
}
