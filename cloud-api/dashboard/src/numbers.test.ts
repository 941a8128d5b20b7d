import { describe, expect, it } from 'vitest';
import { typed } from './numbers';

describe('a number that is typed', () => {
  it('has a point or a comma, in any digits', () => {
    for (const text of ['38.5', '38,5', ' 38,5 ', '३८,५', '३८.५', '３８．５', '٣٨٫٥']) expect(typed(text), text).toBe(38.5);
    expect(typed('120')).toBe(120);
    expect(typed('-5')).toBe(-5);
    expect(typed('.5')).toBe(0.5);
  });
  it('is not made of something else', () => {
    for (const text of ['', 'x', '38,5,1', '1.000,5', '1e3', '385 F', '--5']) expect(typed(text), text).toBeNull();
  });
});
