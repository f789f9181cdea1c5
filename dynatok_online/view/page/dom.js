// Elements without markup: data only ever becomes text.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

// Writes only what has changed: an equal text costs no layout.
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Calls `draw` once in the next frame, however often it is asked for.
export function everyFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame((time) => {
      asked = false;
      draw(time);
    });
  };
}
