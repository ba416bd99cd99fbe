// Albedo times Lambert's cosine under a lamp that is dragged, in linear light. From Gradio: element, props, watch.
// props.value: {normals: data URI, (n + 1) / 2, x right, y up, z toward the viewer; albedo: data URI, sRGB, or null}
const lamp = {x: 0.3, y: 0.25, height: 0.5, ambient: 0.15};  // x, y: shares of width and height; height: of the width
const linear = Float32Array.from({length: 256}, (_, code) => {
  const value = code / 255;
  return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
});
const STEPS = 4095;
const coded = Uint8ClampedArray.from({length: STEPS + 1}, (_, step) => {
  const value = step / STEPS;
  return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
});
let scene = null, canvas = null, waiting = false, latest = 0;

function node(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

async function pixels(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const sheet = Object.assign(document.createElement("canvas"), {width, height}).getContext("2d");
  sheet.drawImage(image, 0, 0);
  return sheet.getImageData(0, 0, width, height);
}

function paint() {
  waiting = false;
  if (!scene) return;
  const {width, height, normals, albedo} = scene, context = canvas.getContext("2d");
  const out = context.createImageData(width, height), lampX = lamp.x * width, lampY = lamp.y * height;
  const z = lamp.height * width, direct = 1 - lamp.ambient;
  for (let row = 0, i = 0; row < height; row++) {
    const y = row + 0.5 - lampY;  // to the lamp, up
    for (let column = 0; column < width; column++, i += 4) {
      const x = lampX - column - 0.5;
      const nx = normals[i] / 127.5 - 1, ny = normals[i + 1] / 127.5 - 1, nz = normals[i + 2] / 127.5 - 1;
      const length = Math.sqrt((x * x + y * y + z * z) * (nx * nx + ny * ny + nz * nz)) || 1;
      const light = lamp.ambient + direct * Math.max(0, (nx * x + ny * y + nz * z) / length);
      for (let c = 0; c < 3; c++) {
        const reflected = albedo ? linear[albedo[i + c]] : 1;
        out.data[i + c] = coded[Math.round(STEPS * Math.min(1, reflected * light))];
      }
      out.data[i + 3] = 255;
    }
  }
  context.putImageData(out, 0, 0);
  const mark = element.querySelector(".lamp");
  mark.style.left = 100 * lamp.x + "%";
  mark.style.top = 100 * lamp.y + "%";
}

function move(x, y) {
  lamp.x = Math.min(1, Math.max(0, x));
  lamp.y = Math.min(1, Math.max(0, y));
  repaint();
}

function repaint() {
  if (!waiting) requestAnimationFrame(paint);
  waiting = true;
}

function listen() {
  const drag = (event) => {
    const box = canvas.getBoundingClientRect();
    move((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag(event);
  });
  canvas.addEventListener("pointermove", (event) => event.buttons && drag(event));
  canvas.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    move(lamp.x + 0.04 * step[0], lamp.y + 0.04 * step[1]);
  });
}

function range(name, label, low, high) {
  const input = node("input", {type: "range", min: low, max: high, step: 0.01, value: lamp[name], className: name});
  input.addEventListener("input", () => {
    lamp[name] = Number(input.value);
    repaint();
  });
  return node("label", {}, label + " ", input);
}

async function draw() {
  const root = element.querySelector(".light-part"), value = props.value, turn = ++latest;
  scene = null;
  root.replaceChildren(node("p", {className: "title", textContent: "Light: drag it, or move it with the arrow keys"}));
  if (!value || !value.normals) {
    root.append(node("p", {className: "empty", textContent: "Needs predicted normals; with an albedo, in its colours."}));
    return;
  }
  const normals = await pixels(value.normals), albedo = value.albedo ? await pixels(value.albedo) : null;
  if (turn !== latest) return;  // another prediction has come meanwhile
  const {width, height} = normals;
  canvas = node("canvas", {width, height, tabIndex: 0});
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "the scene under a lamp; arrow keys move it");
  scene = {width, height, normals: normals.data, albedo: albedo && albedo.data};
  root.append(node("div", {className: "scene"}, canvas, node("div", {className: "lamp"})),
    node("div", {className: "bar"}, range("height", "distance", 0.05, 1.5), range("ambient", "ambient", 0, 1)));
  listen();
  paint();
}

watch("value", draw);
draw();
