// The slider between two of the images. From Gradio: element, props, watch. props.value, or null:
// {images: {title: data URI}, left: title, right: title, ratio: width / height}
let titles = "";
const chosen = {};

function node(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function choice(side, value, frame) {
  const select = node("select", {className: "side-" + side});
  select.append(...Object.keys(value.images).map((title) => node("option", {textContent: title, value: title})));
  select.value = chosen[side];
  select.addEventListener("change", () => choose(side, select.value, value, frame));
  return node("label", {}, side + " ", select);
}

function choose(side, title, value, frame) {
  chosen[side] = title;
  const image = frame.querySelector("img." + side);
  image.src = value.images[title];
  image.alt = title;
  element.querySelector("select.side-" + side).value = title;
}

function draw() {
  const root = element.querySelector(".compare-part"), value = props.value;
  root.replaceChildren();
  if (!value || !value.images) return;
  const found = Object.keys(value.images).join("\n");
  if (found !== titles) Object.assign(chosen, {left: value.left, right: value.right});
  titles = found;
  const slider = node("input", {type: "range", min: 0, max: 100, value: 50, step: 0.5});
  slider.setAttribute("aria-label", "where left and right meet");
  const images = ["right", "left"].map((side) => node("img", {className: side, draggable: false}));
  const frame = node("div", {className: "frame"}, ...images, node("div", {className: "line"}), slider);
  frame.style.setProperty("--ratio", value.ratio);
  slider.addEventListener("input", () => frame.style.setProperty("--at", slider.value + "%"));
  root.append(node("div", {className: "bar"}, choice("left", value, frame), choice("right", value, frame)), frame);
  const thumbs = Object.entries(value.images).map(([title, uri]) => {
    const button = node("button", {type: "button", title: "show on the right: " + title},
      node("img", {src: uri, alt: ""}), node("span", {textContent: title}));
    button.addEventListener("click", () => choose("right", title, value, frame));
    return button;
  });
  if (thumbs.length > 1) root.append(node("div", {className: "thumbs"}, ...thumbs));
  for (const side of ["left", "right"]) choose(side, chosen[side], value, frame);
}

watch("value", draw);
draw();
