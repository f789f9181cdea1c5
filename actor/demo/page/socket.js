// The connection to the server: comes back by itself, and goes on where it was.

export class Connection {
  constructor(position, onMessage, onState) {
    this.position = position; // () => [session, seq] that this page has
    this.onMessage = onMessage;
    this.onState = onState;
    this.wait = 250;
    this.open();
  }

  open() {
    this.socket = new WebSocket(`ws://${location.host}/live`);
    this.socket.onopen = () => {
      const [session, seq] = this.position();
      this.send({ type: "hello", session, seq });
      this.wait = 250;
      this.onState(true);
    };
    this.socket.onmessage = (message) => this.onMessage(JSON.parse(message.data));
    this.socket.onclose = () => {
      this.onState(false);
      setTimeout(() => this.open(), this.wait);
      this.wait = Math.min(this.wait * 2, 4000);
    };
  }

  send(message) {
    if (this.socket.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }
}
