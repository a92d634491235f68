() => {
  // In the models' views, a loupe follows the pointer, at the same place of both settings' pictures.
  const side = 240, zoom = 2, ids = ["a-seen", "b-seen"];
  const loupes = ids.map(() => {
    const loupe = document.createElement("div");
    loupe.className = "apt-loupe";
    loupe.style.width = loupe.style.height = `${side}px`;
    return document.body.appendChild(loupe);
  });

  // where the picture itself lies within its element, which may be wider
  const place = (image) => {
    const box = image.getBoundingClientRect();
    const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight);
    const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
    return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
  };

  const hide = () => loupes.forEach((loupe) => { loupe.style.display = "none"; });

  const show = (loupe, image, x, y) => {
    const at = place(image), wide = image.naturalWidth * zoom, high = image.naturalHeight * zoom;
    loupe.style.display = "block";
    loupe.style.left = `${at.left + x * at.width - side / 2}px`;
    loupe.style.top = `${at.top + y * at.height - side / 2}px`;
    loupe.style.backgroundImage = `url("${image.src}")`;
    loupe.style.backgroundSize = `${wide}px ${high}px`;
    loupe.style.backgroundPosition = `${side / 2 - x * wide}px ${side / 2 - y * high}px`;
  };

  const follow = (event) => {
    const image = event.target.closest?.("#a-seen img, #b-seen img");
    if (!image || !image.naturalWidth) { hide(); return; }
    const at = place(image), x = (event.clientX - at.left) / at.width, y = (event.clientY - at.top) / at.height;
    if (x < 0 || x > 1 || y < 0 || y > 1) { hide(); return; }
    ids.forEach((id, which) => {
      const other = document.querySelector(`#${id} img`);
      if (other && other.offsetParent && other.naturalWidth) show(loupes[which], other, x, y);
      else loupes[which].style.display = "none";
    });
  };
  for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, follow);
  for (const name of ["pointerleave", "scroll"]) document.addEventListener(name, hide, true);

  // an answer belongs to a photo, a setting and a question: it is grey where those on the page are others, or not there
  const greyAnswers = () => {
    const question = document.querySelector("#question textarea, #question input")?.value.trim();
    for (const name of ["a", "b"]) {
      const shown = document.querySelector(`#${name}-facts [data-of]`)?.dataset.of;
      const answered = document.querySelector(`#times-${name} [data-of]`)?.dataset;
      const stale = Boolean(answered) && (answered.of !== shown || answered.question.trim() !== question);
      for (const part of [`#answer-${name}`, `#times-${name}`]) {
        document.querySelector(part)?.classList.toggle("apt-stale", stale);
      }
    }
    const right = document.querySelector("#hint [data-question]");
    right?.classList.toggle("apt-stale", right.dataset.question.trim() !== question);
  };
  new MutationObserver(greyAnswers).observe(document.body, { childList: true, subtree: true, characterData: true });
  document.addEventListener("input", greyAnswers);

  // a tab opened on one side opens on the other, so that like stands beside like
  document.addEventListener("click", (event) => {
    const tab = event.target.closest?.(".apt-panel [role=tab]");
    if (!tab || !event.isTrusted) return;
    for (const other of document.querySelectorAll(".apt-panel [role=tab]")) {
      if (other !== tab && other.textContent.trim() === tab.textContent.trim()
        && other.getAttribute("aria-selected") !== "true") other.click();
    }
  });
}
