const figures = [...document.querySelectorAll("figure[data-reference]")];
const tasks = [...new Set(figures.map((figure) => figure.dataset.reference))];
if (tasks.length > 1) {
  const label = document.createElement("label");
  label.className = "choice";
  label.append("compared with ");
  const menu = document.createElement("select");
  for (const task of ["all earlier tasks", ...tasks]) menu.add(new Option(task));
  menu.addEventListener("change", () => {
    for (const figure of figures) {
      figure.hidden = menu.selectedIndex > 0 && figure.dataset.reference !== menu.value;
    }
  });
  label.append(menu);
  document.querySelector("main").prepend(label);
}
