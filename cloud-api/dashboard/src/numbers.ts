/** Numbers as people type them. */

/** A number with a point or a comma in front of its decimals, in the digits of any script; null: it is none. */
export function typed(text: string): number | null {
  const plain = [...text.normalize('NFKC')].map(decimal).join('').replace(/[\s\u200b\u200e\u200f]/gu, '').replace('\u2212', '-');
  const point = plain.replace(/[,٫]/u, '.');
  return /^[+-]?(\d+\.?\d*|\.\d+)$/u.test(point) ? Number(point) : null;
}

/** A decimal digit of any script as 0 to 9. Blocks of digits begin at their zero and are ten in a row. */
function decimal(c: string): string {
  if (!/\p{Nd}/u.test(c)) return c;
  let zero = c.codePointAt(0) ?? 0;
  const code = zero;
  while (code - zero < 9 && /\p{Nd}/u.test(String.fromCodePoint(zero - 1))) zero -= 1;
  return String(code - zero);
}
