/* exp.h: e^x; a template over the simd words, for ops.h and attend.h.
 *
 * 2^n times a polynomial of degree 7 on [-ln2/2, ln2/2]. Relative error under 3e-7 for x in
 * [-87, 88]; e^0 is exactly 1, which attention counts on; 0 below -87, e^88 above 88. */
SIMD_INLINE vf vf_exp(vf x)
{
    vf low = vf_set(-87.0f);
    vf y = vf_min(vf_max(x, low), vf_set(88.0f));
    vf n = vf_nearest(vf_mul(y, vf_set(1.44269504f)));
    /* ln 2 in two parts: n times the first is exact. */
    vf r = vf_fma(n, vf_set(-0.693359375f), y);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_fma(p, vf_mul(r, r), r);
    p = vf_add(p, vf_set(1.0f));
    return vf_keep_ge(vf_scale2(p, n), x, low);
}
