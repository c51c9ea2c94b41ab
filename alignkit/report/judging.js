// Sort and filter the table of prompts.
(() => {
  const body = document.querySelector('.prompts tbody');
  const rows = [...body.rows];
  const search = document.querySelector('input[type=search]');
  const models = document.querySelector('select');
  const count = document.querySelector('.count');
  let wanted = '', key = 'lean', down = true;
  const show = () => {
    const word = search.value.toLowerCase();
    let left = 0;
    for (const row of rows) {
      const fits = (!wanted || row.dataset.verdict === wanted) &&
        (!models || !models.value || row.dataset.pair === models.value) &&
        (!word || row.textContent.toLowerCase().includes(word));
      row.hidden = !fits;
      left += fits;
    }
    count.textContent = left + ' of ' + rows.length + ' rows';
  };
  const all = name => document.querySelectorAll(name);
  all('[data-show]').forEach(button => button.addEventListener('click', () => {
    wanted = button.dataset.show;
    all('[data-show]').forEach(
      other => other.setAttribute('aria-pressed', String(other === button)));
    show();
  }));
  all('[data-sort]').forEach(button => button.addEventListener('click', () => {
    down = key === button.dataset.sort ? !down : button.dataset.sort !== 'index';
    key = button.dataset.sort;
    rows.sort((x, y) => (x.dataset[key] - y.dataset[key]) * (down ? -1 : 1));
    body.append(...rows);
  }));
  search.addEventListener('input', show);
  if (models) models.addEventListener('change', show);
  show();
})();
