/* What stands below the cloud, or alone: the flat pictures of a stage, and the slices of its volume, one at a time. */

function showFlat(cloud, up) {  // the pictures of the stage, and the slices of its volume
  element("flat").hidden = !cloud.panels.length && !cloud.volume;
  element("slices").hidden = !cloud.volume;
  const columns = Math.ceil(Math.sqrt(cloud.panels.length)) || 1;  // where pictures stand alone they fill the page
  element("flat").className = cloud.isStrips && !cloud.volume ? "strips" : "";
  element("flat").classList.toggle("alone", cloud.isFlat);
  element("panels").style.setProperty("--columns", cloud.isStrips ? 1 : columns);
  element("panels").style.setProperty("--rows", Math.ceil(cloud.panels.length / columns));
  if (element("panels").shows !== cloud) {
    element("panels").replaceChildren();
    for (const panel of cloud.panels) {
      const figure = made("figure", "", element("panels"));
      const image = made("img", "", figure);
      image.src = panel.picture;
      image.alt = panel.name;
      made("figcaption", panel.name, figure);
    }
    element("panels").shows = cloud;
  }
  if (cloud.volume) showSlice(cloud, up);
}

function cellsOf(volume) {
  volume.cells = volume.cells || {
    places: wordsOf(volume.places), values: bytesOf(volume.values), owners: shortsOf(volume.owners),
  };
  return volume.cells;
}

function sliceOf(volume, along, number, isYUp) {  // of one slice: [column, row, value, owner] of its filled cells
  const { places, values, owners } = cellsOf(volume), [X, Y, Z] = volume.size;
  const [columns, rows, depth] = PLANES[along];
  const found = [];
  for (let i = 0; i < places.length; i++) {
    const place = [Math.floor(places[i] / (Y * Z)), Math.floor(places[i] / Z) % Y, places[i] % Z];
    if (place[depth] !== number) continue;
    const row = rows === 2 || isYUp ? [X, Y, Z][rows] - 1 - place[rows] : place[rows];
    found.push([place[columns], row, values[i], owners[i]]);
  }
  return found;
}

function showSlice(cloud, up) {
  const { volume } = cloud, isYUp = up !== "camera_y_down";
  const [columns, rows, depth] = PLANES[chosen.along];
  const count = volume.size[depth];
  const number = Math.min(chosen.slice === null ? count >> 1 : Math.floor(chosen.slice / volume.cell), count - 1);
  element("depth").max = String(count - 1);
  element("depth").value = String(number);
  element("at").textContent = `${number} of 0 to ${count - 1}`;
  const board = element("slice"), pen = board.getContext("2d");
  const size = Math.max(1, Math.floor(352 / Math.max(volume.size[columns], volume.size[rows])));
  [board.width, board.height] = [size * volume.size[columns], size * volume.size[rows]];
  pen.fillStyle = "rgb(252,252,252)";
  pen.fillRect(0, 0, board.width, board.height);
  for (const [column, row, value, owner] of sliceOf(volume, chosen.along, number, isYUp)) {
    pen.fillStyle = `rgb(${volume.palette[owner].map((c) => Math.round(252 + (c - 252) * value / 255)).join()})`;
    pen.fillRect(column * size, row * size, size, size);
  }
  for (const skeleton of cloud.skeletons.filter((each) => !chosen.hidden.has(each.name))) {
    for (const joint of skeleton.joints.map((each) => each.map((value) => value / volume.cell))) {
      if (Math.floor(joint[depth]) !== number) continue;
      const row = rows === 2 || isYUp ? volume.size[rows] - joint[rows] : joint[rows];
      pen.strokeStyle = `rgb(${skeleton.color.join()})`;
      pen.lineWidth = 2;
      pen.strokeRect(joint[columns] * size - 4, row * size - 4, 8, 8);
    }
  }
}

element("along").addEventListener("change", (event) => choose({ along: event.target.value, slice: null }));
element("depth").addEventListener("input", (event) => {  // kept in voxels: a stage of wider cells shows the same place
  const { volume } = data.subjects[chosen.subject].clouds[chosen.stage];
  choose({ slice: (Number(event.target.value) + 0.5) * volume.cell });
});
