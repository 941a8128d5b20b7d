/** Which view an address' hash names. */
export type Route = { at: 'overview' | 'boxes' | 'rules'; id: '' } | { at: 'wearer' | 'device'; id: string };

export function readRoute(hash: string): Route {
  const match = /^#\/(wearer|device)\/([^/?]+)/.exec(hash);
  if (match?.[2]) return { at: match[1] === 'device' ? 'device' : 'wearer', id: decode(match[2]) };
  const plain = /^#\/(boxes|rules)\b/.exec(hash);
  return { at: plain ? (plain[1] as 'boxes' | 'rules') : 'overview', id: '' };
}

/** What is not well encoded names nothing, and is no reason to fail. */
function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
